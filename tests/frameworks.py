"""The frameworks that adapters are tested with, if they are installed."""

from __future__ import annotations

import warnings

import pytest


def need_detectron2() -> None:
    """Skip a test module where Detectron2 is not installed; import it without its warnings."""
    pytest.importorskip("detectron2", reason="Detectron2 is not installed", exc_type=ImportError)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import detectron2.data
        import detectron2.engine
        import detectron2.model_zoo
        import detectron2.modeling  # noqa: F401


QUIET_DETECTRON2 = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),
    pytest.mark.filterwarnings("ignore:Creating a tensor from a list of numpy:UserWarning"),
    pytest.mark.filterwarnings("ignore:unclosed file.*metrics.json:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*metrics.json:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning"),
]
"""Marks for a test module: Detectron2 uses deprecated functions of torch."""


def need_mmdet() -> None:
    """Skip a test module where MMDetection is not installed; import it without its warnings."""
    for name in ("mmengine", "mmcv", "mmdet"):
        pytest.importorskip(name, reason=f"{name} is not installed", exc_type=ImportError)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mmdet.models
        import mmdet.utils  # noqa: F401


QUIET_MMDET = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:DeprecationWarning:UserWarning"),
    pytest.mark.filterwarnings("ignore:pkg_resources is deprecated:UserWarning"),
]
"""Marks for a test module: MMDetection does too."""


def need_transformers() -> None:
    """Skip a test module where transformers or its Trainer's accelerate is not installed."""
    for name in ("transformers", "accelerate"):
        pytest.importorskip(name, reason=f"{name} is not installed", exc_type=ImportError)


QUIET_TRANSFORMERS = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
]
"""Marks for a test module: transformers and accelerate use deprecated functions of torch."""


def need_lightning() -> None:
    """Skip a test module where Lightning is not installed; import it without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("lightning.pytorch", reason="Lightning is not installed", exc_type=ImportError)


QUIET_LIGHTNING = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning"),
]
"""Marks for a test module: Lightning gives advice on data loaders."""
