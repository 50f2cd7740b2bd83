"""Files of a learned segmentation branch, and what is refused of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_generator import ToyGenerator, annotated_samples

from terse_aug.generators import BranchEnsemble, BranchSettings, SampleKey, learn_branch
from terse_aug.generators.protocol import render_sample


def test_a_branch_is_saved_and_read_and_refuses_other_generators(tmp_path: Path) -> None:
    generator = ToyGenerator()
    branch = learn_branch(generator, annotated_samples(generator), BranchSettings(width=8, heads=2, steps=3))
    path = tmp_path / "branch.pt"
    branch.save(path)
    read = BranchEnsemble.load(path)
    key = SampleKey(0, 7)
    sample = render_sample(generator, generator.latent(key), key)
    assert torch.equal(read.probabilities(sample, 0), branch.probabilities(sample, 0))
    assert read.fingerprint == branch.fingerprint
    assert read.record["labels"] == [0, 1]
    read.check(generator)
    with pytest.raises(ValueError, match="another generator"):
        read.check(ToyGenerator(fingerprint="other weights"))
    with pytest.raises(ValueError, match="expected toy 01234567 of 2 classes, got toy 01234567 of 3"):
        read.check(ToyGenerator(("disk", "ball", "cube")))
    torch.save({"kind": "terse-aug branch", "version": 1, "heads": [Path()]}, path)
    with pytest.raises(ValueError, match=r"branch\.pt"):
        BranchEnsemble.load(path)


def without(content: dict[str, Any], name: str) -> dict[str, Any]:
    return {own: value for own, value in content.items() if own != name}


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("heads", lambda heads: [], "no heads"),
        ("heads", lambda heads: [without(heads[0], "mean1")], "mean1"),
        ("heads", lambda heads: [heads[0] | {"more": torch.ones(1)}], "more"),
        ("heads", lambda heads: [heads[0] | {"mean1": heads[0]["mean1"][:, 1:]}], "mean1"),
        ("heads", lambda heads: [heads[0] | {"mean1": heads[0]["mean1"].double()}], "mean1"),
        ("heads", lambda heads: [heads[0] | {"mean1": torch.nan * heads[0]["mean1"]}], "mean1"),
        ("heads", lambda heads: {"first": heads[0]}, "TypeError"),
        ("sizes", lambda sizes: [], "sizes"),
        ("sizes", lambda sizes: [[1 << 50, 8, 8], *sizes[1:]], "mean0"),
        ("sizes", lambda sizes: [[float(side) for side in size] for size in sizes], "sizes"),
        ("sizes", lambda sizes: [[0, *size[1:]] for size in sizes], "sizes"),
        ("sizes", lambda sizes: [size[:2] for size in sizes], "height|width"),
        ("classes", lambda classes: "2", "classes"),
        ("classes", lambda classes: 0, "classes"),
        ("shape", lambda shape: shape | {"variant": "other"}, "variant"),
        ("shape", lambda shape: shape | {"width": 8.0}, "shape"),
        ("shape", lambda shape: shape | {"depth": 1}, "depth"),
        ("record", lambda record: [], "TypeError"),
        ("record", lambda record: without(record, "labels"), "labels"),
        ("record", lambda record: record | {"labels": []}, "labels"),
        ("record", lambda record: record | {"labels": [2]}, "labels"),
        ("record", lambda record: record | {"labels": ["disk"]}, "labels"),
        ("record", lambda record: record | {"generator": 1}, "generator: expected text"),
        ("record", lambda record: record | {"learned": torch.ones(1)}, "not JSON serializable"),
    ],
)
def test_a_file_of_wrong_types_or_sizes_is_no_branch(
    tmp_path: Path, part: str, change: Callable[[Any], Any], message: str
) -> None:
    generator, path = ToyGenerator(), tmp_path / "branch.pt"
    learn_branch(generator, annotated_samples(generator, 3), BranchSettings(width=4, heads=1, steps=1)).save(path)
    content = torch.load(path, weights_only=True)
    torch.save(content | {part: change(content[part])}, path)
    with pytest.raises(ValueError, match=rf"branch\.pt: a damaged branch \(.*({message})"):
        BranchEnsemble.load(path)
