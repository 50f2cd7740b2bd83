"""Composites and labels of fixed seeds are equal to the bit through a redesign; removed at its end.

``python tests/test_digests.py`` writes them to digests.json.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import keypoint_foregrounds, make_bank, make_batch, make_detector, make_foreground
from torch import Tensor

from terse_aug import BackgroundPool, Distractors, ForegroundLoader, PasteConfig, Robustness, Terse
from terse_aug.policies import Adversarial, BestOfN, Critic, Paper, Random
from terse_aug.samplers import RaritySampler

PINNED = Path(__file__).with_name("digests.json")
POLICIES = ("random", "critic", "hard-random", "learned", "deterministic")


def digest(values: list[Any]) -> str:
    found = hashlib.blake2b(digest_size=12)

    def take(value: Any) -> None:
        if isinstance(value, Tensor):
            array = value.detach().cpu().contiguous()
            found.update(str((tuple(array.shape), str(array.dtype))).encode())
            found.update(array.numpy().tobytes())
        elif isinstance(value, dict):
            for name in sorted(value):
                found.update(name.encode())
                take(value[name])
        elif isinstance(value, list | tuple):
            for entry in value:
                take(entry)
        else:
            found.update(repr(value).encode())

    take(values)
    return found.hexdigest()


def train(terse: Terse, detector: torch.nn.Module, iterations: int = 5, loader: Any = None, **fields: Any) -> str:
    seen: list[Any] = []
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.01)
    for number in range(iterations):
        torch.manual_seed(number)
        images, targets = make_batch(number, **fields)
        more = () if loader is None else ([loader() for _ in images],)
        images, targets = terse(images, targets, *more)
        seen += [list(images), targets]
        losses = detector(list(images), [dict(target) for target in targets])
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        terse.step(losses)
    return digest([*seen, list(terse.policy.parameters())])


PASTE = {
    "objects": "objects",
    "image_probability": "paste_probability",
    "paste_probability": "paste_probability",
    "decoys": "decoys",
    "edge_sigma": "edge_blur_sigma",
    "edge_blur_sigma": "edge_blur_sigma",
    "superimpose_probability": "occluded_object_probability",
    "occluded_object_probability": "occluded_object_probability",
}
KINDS = {"random": Random, "critic": Critic, "hard-random": BestOfN, "learned": Adversarial, "deterministic": Paper}


def make(bank: Any, policy: str, **flat: Any) -> Terse:
    flat = dict(flat)
    flat.pop("rarity_power", None)
    values: dict[str, Any] = {}
    if policy in ("critic", "learned", "deterministic"):
        values["update_interval"] = flat.pop("update_interval", 2)
    for old, new in (
        ("critic_cutouts", "foreground_candidates"),
        ("critic_any_class", "mix_classes"),
        ("critic_candidates", "candidates"),
        ("discriminator_weight", "discriminator_weight"),
    ):
        if old in flat:
            values[new] = flat.pop(old)
    more: dict[str, Any] = {
        "paste": PasteConfig(**{PASTE[name]: flat.pop(name) for name in list(flat) if name in PASTE})
    }
    if "background_probability" in flat:
        more["backgrounds"] = BackgroundPool(flat.pop("backgrounds"), flat.pop("background_probability"))
    if "distractors" in flat:
        more["distractors"] = Distractors(flat.pop("distractor_bank"), flat.pop("distractors"))
    if flat.pop("robust", None):
        more["robustness"] = Robustness(steps=flat.pop("robust_steps"), ramp=flat.pop("robust_ramp"))
    names = {"loss": "hardness", "biregular": "balanced"}
    if "sampler" in flat:
        name = flat.pop("sampler")
        more["sampler"] = (
            RaritySampler(1.0) if name == "rarity" else names.get(name, name) if isinstance(name, str) else name
        )
    model = flat.pop("target", None)
    terse = Terse(bank, KINDS[policy](**values), seed=3, model=model, **more, **flat)
    terse.sampler.update_interval = 2
    return terse


def core(folder: Path) -> dict[str, str]:
    bank = make_bank(folder)
    points = make_bank(folder, keypoint_foregrounds(), keypoint_names=("nose", "left_eye", "right_eye"))
    uneven = make_bank(folder, [make_foreground(seed, label=1 + (seed == 0)) for seed in range(6)])
    strange = make_bank(folder, [make_foreground(seed, label=7) for seed in range(3)])
    pool = [torch.from_numpy(np.random.default_rng(n).integers(0, 256, (3, 90, 70), dtype=np.uint8)) for n in range(3)]
    found = {}
    for policy in POLICIES:
        detector = make_detector("fasterrcnn")
        found[f"{policy}/boxes"] = train(make(bank, policy, target=detector), detector, objects=2)
        detector = make_detector("maskrcnn")
        found[f"{policy}/masks"] = train(make(bank, policy, target=detector), detector, masks=True, objects=2)
        detector = make_detector("keypointrcnn", classes=2)
        terse = make(points, policy, target=detector)

        def one_class(number: int, **fields: Any) -> Any:
            images, targets = make_batch(number, **fields)
            return images, [target | {"labels": target["labels"] * 0 + 1} for target in targets]

        seen: list[Any] = []
        for number in range(3):
            images, targets = terse(*one_class(number, keypoints=True))
            seen += [list(images), targets]
            losses = detector(list(images), targets)
            sum(losses.values()).backward()
            terse.step(losses)
        found[f"{policy}/keypoints"] = digest(seen)
    for name, flat in {
        "discriminator": {"policy": "learned", "discriminator_weight": 0.5},
        "wide": {"policy": "critic", "objects": (2, 5), "image_probability": 1.0, "decoys": (1, 3), "edge_sigma": 0.7},
        "several": {"policy": "critic", "critic_cutouts": 3, "critic_any_class": True, "critic_candidates": 4},
        "superimposed": {"policy": "random", "superimpose_probability": 0.8, "image_probability": 1.0},
        "loss-sampler": {"policy": "random", "sampler": "hardness"},
        "rarity": {"policy": "random", "sampler": "rarity", "rarity_power": 1.0},
        "weights": {"policy": "critic", "sampler": "cat=3,dog=0.5"},
        "biregular": {"policy": "random", "sampler": "balanced"},
        "pool": {"policy": "critic", "background_probability": 0.6, "backgrounds": pool},
        "pool-biregular": {
            "policy": "random",
            "background_probability": 0.6,
            "backgrounds": pool,
            "sampler": "balanced",
        },
        "distractors": {"policy": "learned", "distractors": (1, 2), "distractor_bank": strange},
        "pgd": {"policy": "random", "robust": "pgd", "robust_steps": 2, "robust_ramp": 2},
    }.items():
        detector = make_detector("maskrcnn")
        flat = dict(flat)
        own = uneven if "sampler" in flat else bank
        terse = make(own, flat.pop("policy"), target=detector, **flat)
        found[name] = train(terse, detector, iterations=9, masks=True, objects=2)
    for policy in ("random", "critic"):
        detector = make_detector("fasterrcnn")
        loader = ForegroundLoader(bank, policy, seed=3, sampler=RaritySampler(0.5), paste=PasteConfig(objects=(1, 4)))
        terse = make(bank, policy, target=detector, sampler=RaritySampler(0.5), objects=(1, 4))
        found[f"{policy}/loader"] = train(terse, detector, loader=loader)
    return found


def framework_runs(framework: Any, folder: Path) -> dict[str, str]:
    from conformance import settings

    found = {}
    names = {"hard-random": "best-of-n", "learned": "adversarial", "deterministic": "paper"}
    for policy in POLICIES:
        terse = settings(names.get(policy, policy), objects=(1, 3), decoys=(0, 2))
        run = framework.train(folder / policy, 4, terse=terse)
        seen = [[own.image, own.boxes, own.labels, own.masks] for own in chain(*run.entered)]
        found[policy] = digest([seen, run.losses, run.weights])
    return found


def detectron2(folder: Path) -> dict[str, str]:
    from detectron2_factories import registered, tiny_bank
    from test_detectron2_conformance import Detectron2

    (folder / "data").mkdir()
    with registered(folder / "data") as dataset:
        return framework_runs(Detectron2(dataset, tiny_bank(folder / "data")), folder)


def mmdet(folder: Path) -> dict[str, str]:
    import test_mmdet_conformance as tests

    framework_class = next(
        value
        for value in vars(tests).values()
        if isinstance(value, type) and issubclass(value, tests.Framework) and value is not tests.Framework
    )
    (folder / "data").mkdir()
    return framework_runs(
        framework_class(tests.write_data(folder / "data"), tests.tiny_bank(folder / "data").path), folder
    )


@pytest.mark.parametrize("part", ["core", "detectron2", "mmdet"])
@pytest.mark.filterwarnings("ignore")
def test_digests(part: str, tmp_path: Path) -> None:
    if part != "core":
        pytest.importorskip(part, exc_type=ImportError)
    pinned = json.loads(PINNED.read_text())[part]
    found = globals()[part](tmp_path)
    assert found == pinned


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        everything = {}
        for name in sys.argv[1:] or ("core", "detectron2", "mmdet"):
            (Path(folder) / name).mkdir()
            everything[name] = globals()[name](Path(folder) / name)
    PINNED.write_text(json.dumps(everything, indent=1) + "\n")
