"""terse-aug in MMDetection: a transform for the training pipeline, and a hook.

In a config::

    terse = dict(bank="people.bank")
    default_hooks = dict(terse=dict(type="terse_aug_mmdet.TerseHook", **terse))
    train_pipeline = [
        ...,
        dict(type="terse_aug_mmdet.TersePaste", **terse),       # anywhere between the loading and the packing
        dict(type="PackDetInputs"),
    ]
"""

from terse_aug_mmdet.bank import build_from_mmdet
from terse_aug_mmdet.checkpoints import allow_own_checkpoints
from terse_aug_mmdet.hook import TerseHook
from terse_aug_mmdet.model import MMDetAdapter
from terse_aug_mmdet.transform import TersePaste

allow_own_checkpoints()

__all__ = ["MMDetAdapter", "TerseHook", "TersePaste", "allow_own_checkpoints", "build_from_mmdet"]
