"""A mapper around another: fetches cut-outs where the images are loaded, and makes bitmaps of polygons there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper

from terse_aug import ForegroundBank, ForegroundLoader
from terse_aug_detectron2.batch import PARCEL, Item, as_bitmasks
from terse_aug_detectron2.classes import open_bank
from terse_aug_detectron2.config import chosen_policy, chosen_seed, terse_config, terse_node

_LOGGER = logging.getLogger("detectron2.terse_aug")

Mapper = Callable[[Item], Item | None]


class TerseMapper:
    """Wraps a dataset mapper, so that reading and decoding cut-outs is done in the data loader's workers.

    ::

        class Trainer(DefaultTrainer):
            @classmethod
            def build_train_loader(cls, cfg):
                return build_detection_train_loader(cfg, mapper=TerseMapper.from_config(cfg))

    The hook pastes them; without this mapper it reads them itself, in the training process.

    Args:
        mapper: Detectron2's ``DatasetMapper`` or your own; where it gives ``None``, so does this.
        bank: as the hook has it.
        policy: name of the hook's policy.
        settings: of :class:`terse_aug.ForegroundLoader`: ``seed``, ``config`` and single settings, as the hook has them.
    """

    def __init__(self, mapper: Mapper, bank: ForegroundBank | str, policy: str = "critic", **settings: Any) -> None:
        self.mapper = mapper
        bank = bank if isinstance(bank, ForegroundBank) else ForegroundBank.open(bank)
        self._cutouts = ForegroundLoader(bank, policy, **settings)

    @classmethod
    def from_config(cls, cfg: CfgNode, mapper: Mapper | None = None) -> Mapper:
        """A mapper as ``cfg.TERSE`` says; where it is not enabled, the wrapped mapper itself.

        Args:
            cfg: with ``TERSE``.
            mapper: to be wrapped; ``DatasetMapper(cfg, is_train=True)`` by default.

        Raises:
            ValueError: the bank cannot be opened or does not fit the data set.
        """
        mapper = mapper or DatasetMapper(cfg, is_train=True)
        node = terse_node(cfg)
        if not node.ENABLED:
            return mapper
        if cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon":
            _LOGGER.info("Masks are made bitmaps after mapping: a pasted object cannot be cut out of a polygon.")
        seed = chosen_seed(cfg)
        own = (
            torch.initial_seed() % 2**63 if seed is None else seed
        )  # Detectron2 seeds torch, freshly if it is not told
        return cls(mapper, open_bank(cfg), chosen_policy(cfg), seed=own, config=terse_config(cfg))

    def __call__(self, dataset_dict: Item) -> Item | None:
        """Map one image; its cut-outs come along."""
        item = self.mapper(dataset_dict)
        if item is None:
            return None
        if "instances" in item:
            item["instances"] = as_bitmasks(item["instances"])
        item[PARCEL] = self._cutouts()
        return item
