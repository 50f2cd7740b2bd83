"""The modules of examples/torchvision that :mod:`benchmarks.finetune` uses."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples" / "torchvision"))
from detection import models  # noqa: E402
from detection.datasets import DetectionDataset, as_coco, encode_mask  # noqa: E402
from detection.evaluation import Evaluator  # noqa: E402
from detection.frozen_norm import freeze_batch_norm  # noqa: E402
from detection.loading import TrainingOrder, seed_iteration, to_device, training_batches  # noqa: E402
from detection.schedule import learning_rate, set_learning_rate  # noqa: E402

__all__ = [
    "DetectionDataset",
    "Evaluator",
    "TrainingOrder",
    "as_coco",
    "encode_mask",
    "freeze_batch_norm",
    "learning_rate",
    "models",
    "seed_iteration",
    "set_learning_rate",
    "to_device",
    "training_batches",
]
