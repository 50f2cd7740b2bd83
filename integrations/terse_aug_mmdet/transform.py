"""The transform: samples and decodes foregrounds in the data loader's workers."""

from __future__ import annotations

from typing import Any

import torch
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS

from terse_aug import ForegroundLoader
from terse_aug.hook_presence import HookCheck
from terse_aug.integration import SAMPLED_KEY, TerseSettings
from terse_aug_mmdet.bank import open_bank
from terse_aug_mmdet.batch import PathWithForegrounds

_HOOK = 'default_hooks = dict(terse=dict(type="terse_aug_mmdet.TerseHook", bank=...))'
_ARGUMENTS_OF_HOOK = ("input_format", "interval", "image_interval", "compose_ahead")


@TRANSFORMS.register_module()
class TersePaste(BaseTransform):
    """Samples and decodes the foregrounds of an image in the worker; :class:`TerseHook` pastes them on the device.

    Required keys: ``img``. Modified keys: ``img_path`` (the same name, with the foregrounds attached, so that they pass
    ``PackDetInputs``). Added keys: ``terse_foregrounds``, for pipelines whose ``meta_keys`` name it.

    Place it anywhere between loading and packing; after ``Mosaic``, ``MixUp`` and others that combine several images.
    Without it the hook reads the foregrounds itself; without the hook, which is warned about, nothing is pasted.

    Args:
        bank: path of the bank, as for the hook.
        policy: as for the hook.
        seed: mixed with the workers' own seeds; by default torch's, which the runner has set.
        enabled: without it the transform checks its settings and does nothing.
        drop_unknown_classes: as for the hook.
        classes: the data set's class names; needed with ``drop_unknown_classes`` only.
        settings: as for the hook; its own arguments are ignored, so that both take the same dictionary.

    Raises:
        ValueError: the bank cannot be opened, or a setting is outside its range.
        TypeError: a setting is unknown.
    """

    def __init__(
        self,
        bank: str,
        policy: Any = "random",
        seed: int | None = None,
        enabled: bool = True,
        drop_unknown_classes: bool = False,
        classes: Any = None,
        **settings: Any,
    ) -> None:
        own = {name: value for name, value in settings.items() if name not in _ARGUMENTS_OF_HOOK}
        chosen = TerseSettings(policy, **own, open_files=enabled)
        if drop_unknown_classes and classes is None:
            raise ValueError("drop_unknown_classes: expected classes=, the data set's class names, with it")
        chosen.check_for_workers()
        self._bank, self._check_hook = str(bank), HookCheck("TersePaste", _HOOK)
        self._loader: ForegroundLoader | None = None
        if enabled:
            # The runner has seeded torch by its own seed.
            seed = torch.initial_seed() % 2**63 if seed is None else seed
            self._loader = chosen.foreground_loader(open_bank(bank, classes, drop_unknown_classes), seed)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Attach sampled foregrounds.

        Raises:
            ValueError: the image has not been loaded yet, or the results are packed already.
        """
        if "img" not in results:
            place = "before PackDetInputs" if "inputs" in results else "after LoadImageFromFile"
            raise ValueError(f"TersePaste has to be {place} in the pipeline; it got {sorted(results)}")
        if self._loader is None:
            return results
        self._check_hook()
        path = PathWithForegrounds(results.get("img_path") or "")
        path.sampled_foregrounds = self._loader()
        results["img_path"], results[SAMPLED_KEY] = path, path.sampled_foregrounds
        return results

    def __repr__(self) -> str:
        return f"TersePaste(bank={self._bank!r})"
