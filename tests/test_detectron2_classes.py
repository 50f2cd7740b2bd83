"""Labels in Detectron2 follow class names wherever they are known: given to the hook, or in the trainer's config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from factories import bank_of, make_bank, make_foreground
from frameworks import QUIET_DETECTRON2, need_detectron2

need_detectron2()
from detectron2.config import CfgNode, LazyCall, instantiate
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer, SimpleTrainer
from detectron2_factories import CLASSES, bank, dataset, tiny_cfg, trainer_with_hook  # noqa: F401 - fixtures

from terse_aug import ForegroundBank
from terse_aug_detectron2 import TerseHook

pytestmark = QUIET_DETECTRON2


@pytest.fixture
def cfg(dataset: str, tmp_path: Path) -> CfgNode:
    own = tiny_cfg("retinanet", dataset, tmp_path)
    own.SOLVER.MAX_ITER = 1
    return own


@pytest.fixture
def zero_based(tmp_path: Path) -> ForegroundBank:
    """Cats are 0 and dogs 1, where the data set has them in the other order."""
    foregrounds = [make_foreground(seed, label=1 + seed % 2) for seed in range(4)]
    return make_bank(tmp_path, foregrounds).relabel(["cat", "dog"])


def lazy_trainer(cfg: CfgNode, **arguments: Any) -> tuple[SimpleTrainer, TerseHook]:
    """A trainer as a lazy config has it: it knows no data set."""
    model = DefaultTrainer.build_model(cfg)
    loader = build_detection_train_loader(cfg)
    trainer = SimpleTrainer(model, loader, DefaultTrainer.build_optimizer(cfg, model))
    hook = instantiate(LazyCall(TerseHook)(seed=0, paste={"paste_probability": 1.0}, **arguments))
    trainer.register_hooks([hook])
    return trainer, hook


def test_the_classes_of_a_lazy_config_are_matched_by_name(
    cfg: CfgNode,
    bank: ForegroundBank,
) -> None:
    trainer, hook = lazy_trainer(cfg, bank=str(bank.path), classes=CLASSES)
    trainer.train(0, 1)
    assert hook.terse.bank.categories == {0: "dog", 1: "cat"}
    assert {bank.categories[bank[0].label]: 1} == {"cat": hook.terse.bank[0].label}


def test_a_bank_from_a_file_without_any_class_names_is_refused(
    cfg: CfgNode,
    bank: ForegroundBank,
) -> None:
    trainer, _ = lazy_trainer(cfg, bank=str(bank.path))
    with pytest.raises(ValueError, match=r"does not know the data set's class names.*TerseHook\(classes="):
        trainer.train(0, 1)


def test_names_that_the_trainers_config_knows_are_compared(cfg: CfgNode, zero_based: ForegroundBank) -> None:
    trainer = DefaultTrainer(cfg)
    trainer.register_hooks([TerseHook(zero_based)])
    with pytest.raises(ValueError, match=r"not the data set's: .*0: 'cat'.* of DATASETS.TRAIN \{0: 'dog'.*classes="):
        trainer.train()
    wrong_order = DefaultTrainer(cfg)
    wrong_order.register_hooks([TerseHook(zero_based, classes=["cat", "dog"])])
    with pytest.raises(ValueError, match="labels are not the data set's"):
        wrong_order.train()


def test_given_classes_are_those_of_a_loader_that_the_config_does_not_name(cfg: CfgNode, tmp_path: Path) -> None:
    """A config of the model zoo names its own data sets, whatever build_train_loader reads."""
    bank = make_bank(tmp_path).relabel({"cat": 0, "dog": 1})
    path = bank_of(tmp_path, "scratch", "dent")
    trainer = DefaultTrainer(cfg)
    trainer.register_hooks([hook := TerseHook(path, classes=["scratch", "dent"], seed=0)])
    trainer.train()
    assert hook.terse.bank.categories == {0: "scratch", 1: "dent"}
    other = DefaultTrainer(cfg)
    other.register_hooks([TerseHook(bank)])
    with pytest.raises(ValueError, match=f"'{cfg.DATASETS.TRAIN[0]}' of DATASETS.TRAIN"):
        other.train()


@pytest.mark.parametrize("classes", [list(CLASSES), {"cat": 0, "dog": 1}], ids=["names", "on purpose"])
def test_matched_names_and_a_mapping_are_trained_with(cfg: CfgNode, zero_based: ForegroundBank, classes: Any) -> None:
    trainer = DefaultTrainer(cfg)
    trainer.register_hooks([hook := TerseHook(zero_based, classes=classes, seed=0)])
    trainer.train()
    labels = {name: label for label, name in hook.terse.bank.categories.items()}
    assert labels == (classes if isinstance(classes, dict) else {"dog": 0, "cat": 1})


def test_a_misspelled_class_is_recognized_and_the_frameworks_option_named(
    cfg: CfgNode,
    tmp_path: Path,
    dataset: str,
) -> None:
    zebras = make_bank(tmp_path, [make_foreground(label=7), make_foreground(label=1)])
    own = tiny_cfg("retinanet", dataset, tmp_path, zebras)
    with pytest.raises(ValueError, match=r"lacks: zebra; .*leave .* with TERSE.DROP_UNKNOWN_CLASSES True"):
        trainer_with_hook(own)
    with pytest.raises(ValueError, match=r"lacks: zebra \(did you mean Zebras\?\); the detector knows: cat, Zebras"):
        TerseHook(zebras, classes=["cat", "Zebras"])
