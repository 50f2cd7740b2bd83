"""Learns the heads of a segmentation branch from a few annotated samples; resumable, on a CPU to the bit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from terse_aug.discovery.weights_file import load_weights_file, save_weights_file
from terse_aug.generators.branch import BranchShape, SegmentationBranch, feature_moments, feature_sizes
from terse_aug.generators.ensemble import BranchEnsemble
from terse_aug.generators.latents import SampleKey
from terse_aug.generators.protocol import FeatureGenerator, render_sample, short_name
from terse_aug.utils.random import derived_seed, generator_for, isolated_global_rng

Progress = Callable[[int, int], None]
"""Called with the number of steps done, of all heads, and their total."""

_MIN_SAMPLES = 3
_PARTIAL, _VERSION = "unfinished terse-aug branch", 1
_SAVE_INTERVAL = 250
_FEATURE_BYTES = 4 << 30


class AnnotatedSample(NamedTuple):
    """A sample with its mask.

    Attributes:
        key: of the sample.
        latent: as recorded when it was rendered.
        mask: bool ``[H, W]``, true for foreground.
    """

    key: SampleKey
    latent: Tensor
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class BranchSettings(BranchShape):
    """How a branch is learned; the defaults are those of BigDatasetGAN's supplement.

    Attributes:
        variant: form of the branch: ``supplement`` (a 1x1 reduction for each feature, LayerNorm) or ``release`` (one
            for each group, class-conditional norms).
        width: channels that features are reduced to.
        groups: number of groups of features, by size.
        heads: number of branches that are learned; their disagreement is the uncertainty.
        steps: of the optimizer, for each head.
        batch_size: annotated samples in a step, at most as many as there are.
        learning_rate: of Adam.
        seed: of initial weights and batches.

    Raises:
        ValueError: a number is out of range.
    """

    heads: int = 16
    steps: int = 5000
    batch_size: int = 8
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.heads, self.steps, self.batch_size) < 1 or not self.learning_rate > 0:
            raise ValueError(
                "expected heads, steps and batch_size of at least 1 and a learning_rate above 0, got "
                f"{self.heads}, {self.steps}, {self.batch_size}, {self.learning_rate}"
            )


DEFAULT_BRANCH = BranchSettings()


def learn_branch(
    generator: FeatureGenerator,
    samples: Sequence[AnnotatedSample],
    settings: BranchSettings = DEFAULT_BRANCH,
    partial: str | Path | None = None,
    progress: Progress | None = None,
) -> BranchEnsemble:
    """Learn to segment what a generator renders.

    Args:
        generator: frozen.
        samples: annotated, at least three.
        settings: of branch and training.
        partial: file that keeps what is learned of a run that is stopped; the same call then continues, on a CPU to
            the same bits. It is removed at the end.
        progress: called after each step.

    Raises:
        KeyboardInterrupt: interrupted; the message says what is kept.
        ValueError: there are too few samples, a mask is of another size than its image, a feature is not usable, or
            ``partial`` is of other samples or settings, or no file of weights only.
    """
    if len(samples) < _MIN_SAMPLES:
        raise ValueError(f"expected at least {_MIN_SAMPLES} annotated samples, got {len(samples)}; annotate more")
    store = _SampleStore(generator, samples)
    run = _Run(store, settings, len(generator.class_names), None if partial is None else Path(partial))
    total = settings.heads * settings.steps
    try:
        while len(run.finished) < settings.heads:
            run.step()
            if run.total % _SAVE_INTERVAL == 0:
                run.save()
            if progress is not None:
                progress(run.total, total)
    except KeyboardInterrupt as error:
        if run.saved is None:
            raise
        kept = f"{run.saved} of {total} steps are kept: run the same again to resume"
        raise KeyboardInterrupt(f"interrupted; {kept}") from error
    if run.partial is not None:
        run.partial.unlink(missing_ok=True)
    return BranchEnsemble(
        run.finished,
        settings,
        {
            "generator": short_name(generator),
            "generator_fingerprint": generator.fingerprint,
            "labels": sorted({sample.key.label for sample in samples}),
            "samples": len(samples),
            "learned": asdict(settings),
        },
        store.sizes,
        len(generator.class_names),
    )


class _SampleStore:
    """Features of the annotated samples, held as far as 4 GB go and rendered again beyond."""

    def __init__(self, generator: FeatureGenerator, samples: Sequence[AnnotatedSample]) -> None:
        self._generator, self._samples = generator, samples
        self._held: dict[int, tuple[Tensor, ...]] = {}
        self.held_bytes = 0
        key, latent, _ = samples[0]
        first = render_sample(generator, latent, key).features
        self.device, self.sizes = first[0].device, feature_sizes(first)
        self.masks = torch.from_numpy(np.stack([sample.mask for sample in samples])).float().to(self.device)
        self.labels = torch.tensor([sample.key.label for sample in samples], device=self.device)
        self.moments = feature_moments(self.features(number) for number in range(len(samples)))

    def __len__(self) -> int:
        return len(self._samples)

    def features(self, number: int) -> tuple[Tensor, ...]:
        """Of one sample, each ``[1, C, h, w]``."""
        if number not in self._held:
            key, latent, mask = self._samples[number]
            image, features = render_sample(self._generator, latent, key)
            if image.shape[:2] != mask.shape:
                raise ValueError(f"{self._generator.name}: a mask of {mask.shape} for an image of {image.shape[:2]}")
            if feature_sizes(features) != self.sizes:
                raise ValueError(f"{self._generator.name}: the features of annotated samples are of different sizes")
            size = sum(own.nbytes for own in features)
            if self.held_bytes + size > _FEATURE_BYTES:
                return features
            self.held_bytes += size
            self._held[number] = features
        return self._held[number]

    def batch(self, numbers: Sequence[int]) -> tuple[list[Tensor], Tensor, Tensor]:
        """Features, class numbers and masks of some samples."""
        each = [self.features(number) for number in numbers]
        return [torch.cat(own) for own in zip(*each, strict=True)], self.labels[numbers], self.masks[numbers]

    def digest(self) -> str:
        """Of all that is learned from."""
        digest = hashlib.blake2b(self._generator.fingerprint.encode(), digest_size=16)
        for key, latent, mask in self._samples:
            digest.update(
                repr(key).encode()
                + latent.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
                + mask.tobytes()
            )
        return digest.hexdigest()


class _Run:
    """The heads one after the other; every random draw is a function of seed, head and step."""

    def __init__(self, store: _SampleStore, settings: BranchSettings, classes: int, partial: Path | None) -> None:
        self._store, self._settings, self._classes, self.partial = store, settings, classes, partial
        self._identity = {"settings": asdict(settings), "samples": store.digest()}
        self.finished: list[SegmentationBranch] = []
        self.saved: int | None = None
        self._done = 0
        self._head, self._optimizer = self._begun()
        if partial is not None and partial.exists():
            self._resume(partial)

    @property
    def total(self) -> int:
        """Steps done, of all heads."""
        return len(self.finished) * self._settings.steps + self._done

    def step(self) -> None:
        """One step of the head that is being learned; after its last the next one begins."""
        rng = generator_for(self._settings.seed, "branch batch", len(self.finished), self._done)
        numbers = torch.randperm(len(self._store), generator=rng)[: self._settings.batch_size].tolist()
        features, labels, masks = self._store.batch(numbers)
        logits = self._head(features, labels, tuple(masks.shape[1:]))
        loss = functional.binary_cross_entropy_with_logits(logits, masks)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        self._optimizer.step()
        self._done += 1
        if self._done == self._settings.steps:
            self.finished.append(self._head.eval())
            self._done = 0
            if len(self.finished) < self._settings.heads:
                self._head, self._optimizer = self._begun()

    def save(self) -> None:
        """Keep what is learned so far."""
        if self.partial is not None:
            content = {
                "identity": self._identity,
                "finished": [head.state_dict() for head in self.finished],
                "head": self._head.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "done": self._done,
            }
            save_weights_file(self.partial, _PARTIAL, _VERSION, content)
            self.saved = self.total

    def _begun(self) -> tuple[SegmentationBranch, torch.optim.Adam]:
        head = self._new_head(len(self.finished))
        return head, torch.optim.Adam(head.parameters(), lr=self._settings.learning_rate)

    def _new_head(self, number: int) -> SegmentationBranch:
        with isolated_global_rng(derived_seed(self._settings.seed, "branch head", number)):
            head = SegmentationBranch(self._store.sizes, self._classes, self._settings)
        head.standardize(self._store.moments)
        return head.to(self._store.device)

    def _resume(self, path: Path) -> None:
        content = load_weights_file(path, _PARTIAL, _VERSION)
        if content["identity"] != self._identity:
            raise ValueError(
                f"{path} keeps an unfinished run of other samples, generator or settings; run that one again, or "
                "remove the file"
            )
        for state in content["finished"]:
            head = self._new_head(len(self.finished))
            head.load_state_dict(state)
            self.finished.append(head.eval())
        self._head, self._optimizer = self._begun()
        self._head.load_state_dict(content["head"])
        self._optimizer.load_state_dict(content["optimizer"])
        self._done = content["done"]
        self.saved = self.total
