"""A learned segmentation branch: its heads, on disk without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from terse_aug.discovery.weights_file import load_weights_file, save_weights_file
from terse_aug.generators.branch import BranchShape, FeatureSize, SegmentationBranch, feature_sizes
from terse_aug.generators.protocol import FeatureGenerator, Sample, short_name, weights_digest

_KIND, _VERSION = "terse-aug branch", 1


class BranchEnsemble:
    """The heads of a segmentation branch of one generator.

    Args:
        heads: learned.
        shape: of each.
        record: how they were learned, for JSON: ``generator`` and ``generator_fingerprint``, ``labels`` (the annotated
            classes) and more.
        sizes: of the features.
        classes: number of the generator's classes.

    Attributes:
        fingerprint: hex digest of the weights and of the record.
    """

    def __init__(
        self,
        heads: Sequence[SegmentationBranch],
        shape: BranchShape,
        record: Mapping[str, Any],
        sizes: Sequence[FeatureSize],
        classes: int,
    ) -> None:
        self.heads = [head.eval().requires_grad_(False) for head in heads]
        self.record = dict(record)
        self._shape = BranchShape(shape.variant, shape.width, shape.groups)
        self._sizes, self._classes = list(sizes), classes
        self.fingerprint = weights_digest(nn.ModuleList(self.heads), sorted(self.record.items()))

    def check(self, generator: FeatureGenerator, where: str = "the branch") -> None:
        """Raise ``ValueError`` if it was learned from another generator, or one of another number of classes."""
        known = (self.record["generator_fingerprint"], self._classes)
        if (generator.fingerprint, len(generator.class_names)) != known:
            raise ValueError(
                f"{where} was learned from another generator: expected {self.record['generator']} of {self._classes} "
                f"classes, got {short_name(generator)} of {len(generator.class_names)}"
            )

    @torch.no_grad()
    def probabilities(self, sample: Sample, label: int) -> Tensor:
        """Of foreground, by each head: ``[heads, H, W]`` of a rendered sample of a class.

        Raises:
            ValueError: the sample has other features than those that the branch was learned on.
        """
        if (sizes := feature_sizes(sample.features)) != self._sizes:
            expected, got = ([tuple(size) for size in own] for own in (self._sizes, sizes))
            raise ValueError(f"the branch was learned on features of other sizes: expected {expected}, got {got}")
        device = sample.features[0].device
        labels, size = torch.tensor([label], device=device), sample.image.shape[:2]
        logits = [head.to(device)(sample.features, labels, size) for head in self.heads]
        return torch.cat(logits).sigmoid()

    def save(self, path: str | Path) -> None:
        """Write it to a file, whole or not at all."""
        content = {
            "shape": asdict(self._shape),
            "record": self.record,
            "sizes": [list(size) for size in self._sizes],
            "classes": self._classes,
            "heads": [head.state_dict() for head in self.heads],
        }
        save_weights_file(path, _KIND, _VERSION, content)

    @classmethod
    def load(cls, path: str | Path) -> BranchEnsemble:
        """Read a branch; nothing is unpickled.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no branch, or a damaged one; the message names the file.
        """
        content = load_weights_file(path, _KIND, _VERSION)
        try:
            shape, sizes = BranchShape(**content["shape"]), [FeatureSize(*size) for size in content["sizes"]]
            classes, record, states = content["classes"], content["record"], content["heads"]
            _check_whole("shape", [shape.width, shape.groups])
            _check_whole("sizes", [side for size in sizes for side in size])
            _check_whole("classes", [classes])
            _check_record(record, classes)
            if not states:
                raise ValueError("it has no heads")
            heads = [_head_of(state, sizes, classes, shape) for state in states]
            return cls(heads, shape, record, sizes, classes)
        except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"{path}: a damaged branch ({reason})") from error


def _check_whole(what: str, numbers: Sequence[Any]) -> None:
    if not numbers or not all(type(number) is int and number > 0 for number in numbers):
        raise ValueError(f"{what}: expected whole numbers above 0, got {numbers}")


def _check_record(record: Any, classes: int) -> None:
    json.dumps(record, allow_nan=False)
    for name in ("generator", "generator_fingerprint"):
        if not isinstance(record[name], str):
            raise TypeError(f"{name}: expected text, got {record[name]!r}")
    labels = record["labels"]
    if not labels or not all(type(label) is int and 0 <= label < classes for label in labels):
        raise ValueError(f"labels: expected class numbers below {classes}, got {labels}")


def _head_of(
    state: Mapping[str, Any], sizes: Sequence[FeatureSize], classes: int, shape: BranchShape
) -> SegmentationBranch:
    with torch.device("meta"):  # so that what the file says of sizes allocates nothing
        head = SegmentationBranch(sizes, classes, shape)
    for name, expected in head.state_dict().items():
        if state[name].dtype != expected.dtype or state[name].isnan().any():
            raise ValueError(f"{name}: expected numbers of {expected.dtype}, got {state[name].dtype} or NaN")
    head.load_state_dict(state, assign=True)
    return head
