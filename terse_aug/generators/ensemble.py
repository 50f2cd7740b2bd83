"""A learned segmentation branch: its heads, on disk without pickle."""

from __future__ import annotations

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
        """Raise ``ValueError`` if it was learned from another generator."""
        if generator.fingerprint != self.record["generator_fingerprint"]:
            raise ValueError(
                f"{where} was learned from another generator: expected {self.record['generator']}, got "
                f"{short_name(generator)}"
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
            heads = []
            for state in content["heads"]:
                heads.append(SegmentationBranch(sizes, content["classes"], shape))
                heads[-1].load_state_dict(state)
            return cls(heads, shape, content["record"], sizes, content["classes"])
        except (KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise ValueError(f"{path}: a damaged branch ({type(error).__name__}: {error})") from error
