"""A wrapper of a dataset mapper: samples and decodes foregrounds, and rasterizes polygons, in the workers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper

from terse_aug import ForegroundBank, ForegroundLoader
from terse_aug.hook_presence import HookCheck
from terse_aug.integration import SAMPLED_KEY, TerseSettings
from terse_aug_detectron2.batch import Item, as_bitmasks, checked_items
from terse_aug_detectron2.classes import open_bank
from terse_aug_detectron2.config import chosen_seed, terse_node, terse_settings

_LOGGER = logging.getLogger("detectron2.terse_aug")

Mapper = Callable[[Item], Item | None]


class TerseMapper:
    """Wraps a dataset mapper, so that foregrounds are read and decoded in the data loader's workers.

    ::

        class Trainer(DefaultTrainer):
            @classmethod
            def build_train_loader(cls, cfg):
                return build_detection_train_loader(cfg, mapper=TerseMapper.from_config(cfg))

    The hook pastes them; without it, which is warned about, nothing is pasted. Without this mapper the hook reads them
    itself, in the training process.

    Args:
        mapper: Detectron2's ``DatasetMapper`` or your own; where it returns ``None``, so does this.
        bank: as for the hook.
        policy: as for the hook.
        seed: as for the hook.
        settings: ``paste``, ``sampler`` and ``backgrounds`` as for the hook.

    Raises:
        ValueError: a value is outside its range, or the sampler draws in the training process only.
    """

    def __init__(
        self, mapper: Mapper, bank: ForegroundBank | str, policy: Any = "random", *, seed: int = 0, **settings: Any
    ) -> None:
        bank = bank if isinstance(bank, ForegroundBank) else ForegroundBank.open(bank)
        self.mapper, self._check_hook = mapper, HookCheck("TerseMapper", "trainer.register_hooks([TerseHook...])")
        self.foreground_loader: ForegroundLoader = TerseSettings(policy, **settings).foreground_loader(bank, seed)

    @classmethod
    def from_config(cls, cfg: CfgNode, mapper: Mapper | None = None) -> Mapper:
        """The mapper for ``cfg.TERSE``; if that is not enabled, the given one.

        Args:
            cfg: with ``TERSE``.
            mapper: to be wrapped; ``DatasetMapper(cfg, is_train=True)`` by default.

        Raises:
            ValueError: the bank cannot be opened or does not fit the data set, or a value is outside its range.
        """
        mapper = mapper or DatasetMapper(cfg, is_train=True)
        if not terse_node(cfg).ENABLED:
            return mapper
        if cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon":
            _LOGGER.info("Polygons are rasterized after mapping: a paste cannot be subtracted from a polygon.")
        seed, settings = chosen_seed(cfg), terse_settings(cfg)
        # Detectron2 has seeded torch, with a fresh seed if it was given none.
        seed = torch.initial_seed() % 2**63 if seed is None else seed
        return cls(
            mapper,
            open_bank(cfg),
            settings.policy,
            seed=seed,
            paste=settings.paste,
            sampler=settings.sampler,
            backgrounds=settings.backgrounds,
        )

    def __call__(self, dataset_dict: Item) -> Item | None:
        """Map one image and add its sampled foregrounds."""
        item = self.mapper(dataset_dict)
        if item is None:
            return None
        checked_items([item])
        if "instances" in item:
            item["instances"] = as_bitmasks(item["instances"])
        self._check_hook()
        item[SAMPLED_KEY] = self.foreground_loader()
        return item
