"""terse-aug in Detectron2: a hook for the trainer, a mapper for the data loader, keys for the config.

::

    from terse_aug_detectron2 import TerseHook, add_terse_config

    cfg = get_cfg()
    add_terse_config(cfg)                                    # before cfg.merge_from_file
    ...
    trainer = DefaultTrainer(cfg)
    trainer.register_hooks([TerseHook.from_config(cfg)])     # None, which is ignored, unless TERSE.ENABLED
"""

from terse_aug_detectron2.bank import build_from_detectron2
from terse_aug_detectron2.config import add_terse_config, describe_config, terse_settings
from terse_aug_detectron2.hook import TerseHook
from terse_aug_detectron2.mapper import TerseMapper
from terse_aug_detectron2.model import Detectron2Adapter

__all__ = [
    "Detectron2Adapter",
    "TerseHook",
    "TerseMapper",
    "add_terse_config",
    "build_from_detectron2",
    "describe_config",
    "terse_settings",
]
