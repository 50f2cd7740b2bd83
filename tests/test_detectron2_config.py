"""Detectron2's config: every setting has a key, and what does not fit is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from factories import tiny_bank
from frameworks import QUIET_DETECTRON2, need_detectron2
from torch import nn

need_detectron2()
from detectron2.config import CfgNode, LazyCall, get_cfg, instantiate
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2_factories import (  # noqa: F401 - fixtures
    CLASSES,
    Watched,
    bank,
    coco_registered,
    dataset,
    item,
    registered,
    set_terse,
    tiny_cfg,
    trainer_with_hook,
)

from terse_aug import ForegroundBank, PasteConfig, Photometric, Robustness, TransformRanges
from terse_aug.config import POLICY_SETTINGS
from terse_aug.policies import Critic, Random
from terse_aug.samplers import HardnessSampler, RaritySampler
from terse_aug_detectron2 import (
    Detectron2Adapter,
    TerseHook,
    TerseMapper,
    add_terse_config,
    describe_config,
    terse_settings,
)

pytestmark = QUIET_DETECTRON2


def default_cfg() -> CfgNode:
    cfg = get_cfg()
    add_terse_config(cfg)
    return cfg


def test_every_setting_has_an_explained_key_and_terse_aug_is_off_by_default() -> None:
    cfg = default_cfg()
    assert cfg.TERSE.ENABLED is False
    settings = terse_settings(cfg)
    assert (settings.policy, settings.paste) == (Random(), PasteConfig())
    assert settings.backgrounds is settings.distractors is settings.robustness is None
    lines = {line.split("`")[1]: line for line in describe_config().splitlines()[2:]}
    groups = {"PASTE": PasteConfig, "PASTE.RANGES": TransformRanges, "PASTE.PHOTOMETRIC": Photometric}
    groups |= {"ROBUSTNESS": Robustness}
    groups |= {f"POLICY.{name.upper().replace('-', '_')}": kind for name, kind in POLICY_SETTINGS.items()}
    for group, kind in groups.items():
        for field in dataclasses.fields(kind):
            if not dataclasses.is_dataclass(field.default):
                assert field.metadata["help"].replace("|", r"\|") in lines[f"TERSE.{group}.{field.name.upper()}"]
    assert set(lines) == set(leaves("TERSE", cfg.TERSE))


def leaves(name: str, node: CfgNode) -> Iterator[str]:
    for key, value in node.items():
        yield from leaves(f"{name}.{key}", value) if isinstance(value, CfgNode) else [f"{name}.{key}"]


def test_a_config_file_is_read_and_wrong_keys_and_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no TERSE: call add_terse_config\(cfg\) before cfg\.merge_from_file"):
        terse_settings(get_cfg())
    cfg = default_cfg()
    text = "TERSE:\n  POLICY:\n    NAME: critic\n    CRITIC:\n      FIXED_PARAMETERS: []\n"
    text += (
        "  PASTE:\n    OBJECTS: [2, 5]\n    RANGES:\n      ROTATION: [-5.0, 5.0]\n  ROBUSTNESS:\n    ENABLED: True\n"
    )
    text += "  SAMPLER:\n    NAME: rarity\n    RARITY_POWER: 1.0\n"
    (tmp_path / "a.yaml").write_text(text)
    cfg.merge_from_file(str(tmp_path / "a.yaml"))
    settings = terse_settings(cfg)
    assert settings.policy == Critic(fixed_parameters=())
    assert settings.paste == PasteConfig(objects=(2, 5), ranges=TransformRanges(rotation=(-5.0, 5.0)))
    assert settings.robustness == Robustness()
    assert isinstance(settings.sampler, RaritySampler)
    assert settings.sampler.power == 1.0
    with pytest.raises((KeyError, AssertionError), match="OBJEKTS"):
        cfg.merge_from_list(["TERSE.PASTE.OBJEKTS", "(1, 2)"])
    for key, value, message in (
        ("POLICY.CRITIC.UPDATE_INTERVAL", 0, "update_interval: expected a whole number of at least 1"),
        ("POLICY.NAME", "critik", r"TERSE\.POLICY\.NAME: expected one of .*critic.*, got 'critik'"),
        ("SAMPLER.NAME", "often", "sampler: expected one of uniform, rarity, hardness, balanced"),
    ):
        wrong = cfg.clone()
        wrong.merge_from_list([f"TERSE.{key}", value])
        with pytest.raises(ValueError, match=message):
            terse_settings(wrong)


def test_disabled_there_is_no_hook_and_the_mapper_is_unchanged(dataset: str, tmp_path: Path) -> None:
    cfg = tiny_cfg("faster_fpn", dataset, tmp_path)
    assert TerseHook.from_config(cfg) is None
    mapper = DatasetMapper(cfg, is_train=True)
    assert TerseMapper.from_config(cfg, mapper) is mapper
    DefaultTrainer(cfg).register_hooks([TerseHook.from_config(cfg)])


def test_what_does_not_fit_the_data_set_is_refused(dataset: str, bank: ForegroundBank, tmp_path: Path) -> None:
    cfg = tiny_cfg("faster_fpn", dataset, tmp_path, bank)
    for make in (TerseHook.from_config, TerseMapper.from_config):
        with registered(tmp_path, "dogs_only", ("dog",)) as dogs:
            cfg.DATASETS.TRAIN = (dogs,)
            with pytest.raises(ValueError, match="the bank has categories that the detector lacks: cat"):
                make(cfg)
            cfg.TERSE.DROP_UNKNOWN_CLASSES = True
            assert make(cfg) is not None
            cfg.TERSE.DROP_UNKNOWN_CLASSES = False
            cfg.DATASETS.TRAIN = (dataset, dogs)
            with pytest.raises(ValueError, match="have different classes"):
                make(cfg)
        with registered(tmp_path, "nameless", None) as nameless:
            cfg.DATASETS.TRAIN = (nameless,)
            with pytest.raises(ValueError, match=r"no class names, .*thing_classes"):
                make(cfg)
        cfg.DATASETS.TRAIN = (dataset,)
    cfg.VIS_PERIOD = 20
    with pytest.raises(ValueError, match="VIS_PERIOD above 0 draws the images"):
        TerseHook.from_config(cfg)
    cfg.VIS_PERIOD, cfg.TERSE.BANK = 0, ""
    with pytest.raises(ValueError, match=r"TERSE\.BANK is empty"):
        TerseHook.from_config(cfg)


def test_the_classes_of_a_coco_json_are_known_before_training(bank: ForegroundBank, tmp_path: Path) -> None:
    """Detectron2 reads their names with the data set, which is after the mapper is made."""
    content = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]}
    with coco_registered("from_json", tmp_path, content):
        cfg = tiny_cfg("faster_fpn", "from_json", tmp_path, bank)
        hook = TerseHook.from_config(cfg)
        assert hook is not None
        assert hook.bank.categories == {0: "dog", 1: "cat"}
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN: 'from_json' is not registered"):
        TerseHook.from_config(cfg)


@pytest.mark.parametrize("name", ["PanopticFPN", "SemanticSegmentor", "PanopticDeepLab"])
def test_panoptic_and_semantic_models_are_refused(
    dataset: str, bank: ForegroundBank, tmp_path: Path, name: str
) -> None:
    cfg = tiny_cfg("faster_fpn", dataset, tmp_path, bank)
    cfg.MODEL.META_ARCHITECTURE = name
    with pytest.raises(ValueError, match=rf"{name}: it learns from semantic maps"):
        TerseHook.from_config(cfg)
    if name == "PanopticDeepLab":
        with pytest.raises(ValueError, match="PanopticDeepLab learns from semantic maps"):
            Detectron2Adapter(type(name, (nn.Module,), {})())


def test_keypoints_have_to_be_those_of_the_data_set(tmp_path: Path) -> None:
    with registered(tmp_path, "points") as dataset:
        cfg = tiny_cfg("keypoint_fpn", dataset, tmp_path, tiny_bank(tmp_path, keypoints=True))
        assert TerseHook.from_config(cfg) is not None
        MetadataCatalog.get(dataset).keypoint_names.reverse()
        with pytest.raises(ValueError, match=r"the bank's keypoints are \('nose', .*, the data set's \('right_eye', "):
            TerseHook.from_config(cfg)


def test_lazy_configs_may_hold_lists_and_dictionaries(bank: ForegroundBank) -> None:
    ranges = LazyCall(TransformRanges)(rotation=(-5.0, 5.0))
    expected = PasteConfig(objects=(2, 3), ranges=TransformRanges(rotation=(-5.0, 5.0)))
    for paste in (
        LazyCall(PasteConfig)(objects=(2, 3), ranges=ranges),
        {"objects": [2, 3], "ranges": {"rotation": [-5.0, 5.0]}},
    ):
        policy = {"type": "Critic", "fixed_parameters": ["shear"]}
        hook = instantiate(LazyCall(TerseHook)(bank=str(bank.path), policy=policy, paste=paste))
        assert isinstance(hook, TerseHook)
        assert hook.settings is not None
        assert hook.settings.paste == expected
        assert hook.settings.policy == Critic(fixed_parameters=("shear",))
    with pytest.raises(ValueError, match="objects: expected whole numbers"):
        instantiate(LazyCall(TerseHook)(bank=str(bank.path), paste={"objects": (3, 2)}))


def test_the_hardness_of_the_classes_is_recorded_and_saved(dataset: str, bank: ForegroundBank, tmp_path: Path) -> None:
    trainer, hook = trainer_with_hook(
        tiny_cfg("faster_fpn", dataset, tmp_path, bank, sampler="hardness", policy="random")
    )
    trainer.train()
    assert isinstance(hook.terse.sampler, HardnessSampler)
    saved = [value for name, value in hook.state_dict()["terse"].items() if name.startswith("trainer.sampler.")]
    assert any(float(value.double().sum()) > 0 for value in saved)
    assert hook.terse.metrics()["extra_forwards"] == 0
    for _ in range(2):  # training may continue with the same sampler
        hook.before_train()
        assert isinstance(hook.terse.sampler, HardnessSampler)


def test_a_sampler_that_depends_on_what_was_pasted_has_no_mapper(
    dataset: str, bank: ForegroundBank, tmp_path: Path
) -> None:
    cfg = tiny_cfg("faster_fpn", dataset, tmp_path, bank, sampler="balanced")
    with pytest.raises(ValueError, match="in Detectron2 without TerseMapper"):
        TerseMapper.from_config(cfg)
    set_terse(cfg, sampler="dog=2,cat=0.5")
    assert TerseMapper.from_config(cfg) is not None
