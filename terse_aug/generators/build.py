"""A bank from a generator and its segmentation branch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from terse_aug.bank import BuildOptions, BuildReport, ExtractionRules, Foreground
from terse_aug.bank.build.chunks import Source
from terse_aug.bank.build.report import BuildLog, Progress
from terse_aug.bank.extract import Annotation, RejectedObject, extract_from_image
from terse_aug.bank.segmenters.operations import soft_alpha
from terse_aug.generators.ensemble import BranchEnsemble
from terse_aug.generators.filtering import highest, mode_mask, uncertainty
from terse_aug.generators.latents import SampleKey, Truncation
from terse_aug.generators.load import class_numbers, imported, load_generator
from terse_aug.generators.protocol import FeatureGenerator, check_generator, render_sample, sample_latent, short_name

Classifier = Callable[[NDArray[np.uint8], int], float]
"""From an image uint8 ``[H, W, 3]`` and a class number to how probable the class is."""

_GROUP = 50
_BY_BRANCH = "segmentation branch"
_UNCERTAIN = "among the samples that the heads disagree most about (drop)"
_IMPROBABLE = "among the samples that the classifier finds least probable (keep)"


@dataclass(frozen=True)
class GeneratedSamples:
    """Which samples are rendered.

    Attributes:
        categories: classes, by name or number; by default those of the annotated samples.
        names: of these classes in the bank, in the same order; by default the generator's.
        count: samples of each class.
        first: number of the first sample of each class.
        seed: of all samples.
        truncation: see :class:`Truncation`.
        truncation_method: likewise.
    """

    categories: Sequence[str] = ()
    names: Sequence[str] = ()
    count: int = 100
    first: int = 0
    seed: int = 0
    truncation: float = 0.9
    truncation_method: str = "scaled"

    def __post_init__(self) -> None:
        if self.count < 1 or self.first < 0 or self.seed < 0:
            raise ValueError(
                "expected count of at least 1, first and seed of at least 0, got "
                f"{self.count}, {self.first}, {self.seed}"
            )
        Truncation(self.truncation, self.truncation_method).checked()

    def groups(self, classes: Sequence[int]) -> list[list[SampleKey]]:
        """The samples of each class, in groups of at most 50."""
        by = Truncation(self.truncation, self.truncation_method)
        numbers = np.array_split(np.arange(self.first, self.first + self.count), -(-self.count // _GROUP))
        return [[SampleKey(own, int(at), self.seed, by) for at in group] for own in classes for group in numbers]


@dataclass(frozen=True)
class Filters:
    """Which samples are kept; of each group of at most 50 samples of a class the same fractions.

    Attributes:
        drop: fraction of the samples that is left out, those that the heads disagree most about.
        uncertain_pixels: fraction of a sample's pixels, the most uncertain, that its uncertainty is the mean of.
        min_region: connected parts of a mask with fewer px are left out.
        keep: fraction of the samples that the classifier finds most probable.
    """

    drop: float = 0.1
    uncertain_pixels: float = 1.0
    min_region: int = 30
    keep: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.drop < 1 and 0 < self.uncertain_pixels <= 1 and 0 < self.keep <= 1):
            raise ValueError(
                "expected drop from 0 to below 1, uncertain_pixels and keep above 0 and at most 1, got "
                f"{self.drop}, {self.uncertain_pixels}, {self.keep}"
            )


DEFAULT_SAMPLES, DEFAULT_FILTERS = GeneratedSamples(), Filters()


def build_from_generator(
    generator: str | FeatureGenerator,
    branch: str | Path | BranchEnsemble,
    out: str | Path,
    *,
    samples: GeneratedSamples = DEFAULT_SAMPLES,
    filters: Filters = DEFAULT_FILTERS,
    classifier: str | Classifier | None = None,
    device: str | None = None,
    **options: Any,
) -> BuildReport:
    """Build a bank from a generator and its segmentation branch.

    The source of every foreground says generator, class, number, seed and truncation; :func:`remake` makes its image
    again. Labels are 1, 2, ... in the order of ``samples.categories``. One process renders unless ``jobs`` says
    otherwise.

    Args:
        generator: a generator, or the text that names one, see :func:`load_generator`.
        branch: learned for it, or its file.
        out: the bank to write.
        samples: which are rendered.
        filters: which of them are kept.
        classifier: from an image uint8 ``[H, W, 3]`` and a class number to how probable the class is, or
            ``module:function``; needed for ``filters.keep``.
        device: to render on; by default a GPU if there is one.
        options: see :class:`BuildOptions`.

    Raises:
        FileNotFoundError, MissingPackageError: a file or a package is missing.
        ValueError: a class is unknown, a value is out of range, the branch is another generator's, or what the
            generator renders cannot be used.
        FileExistsError, ValueError, OSError: as :class:`BuildOptions`.
    """
    settings = _checked_options(out, options)
    if (classifier is None) != (filters.keep == 1):
        raise ValueError("classifier and keep (below 1) belong together: give both or none")
    made = load_generator(generator, device) if isinstance(generator, str) else check_generator(generator, "generator")
    heads = branch if isinstance(branch, BranchEnsemble) else BranchEnsemble.load(branch)
    heads.check(made, "the branch" if isinstance(branch, BranchEnsemble) else str(branch))
    judge = imported(classifier, "classifier") if isinstance(classifier, str) else classifier
    classes = class_numbers(made, samples.categories) if samples.categories else list(heads.record["labels"])
    names = samples.names or [made.class_names[own] for own in classes]
    if filters.drop and len(heads.heads) == 1:
        raise ValueError("drop: the branch has one head, which cannot disagree with others; expected 0")
    if len(names) != len(classes):
        raise ValueError(f"names: expected {len(classes)}, one for each class, got {len(names)}")
    labels = {number: label for label, number in enumerate(classes, 1)}
    record = _record(generator, made, heads, samples, filters, judge) | vars(settings.rules)
    # What a function of the user's depends on cannot be known, so such a build cannot be resumed.
    known = record if judge is None else None
    extractor = _Extractor(made, heads, labels, filters, judge, settings.rules)
    groups = samples.groups(classes)
    source = Source(groups, extractor, known, object_count=len)
    done = [0, *itertools.accumulate(map(len, groups))]
    categories = dict(zip(labels.values(), names, strict=True))
    report = replace(settings, jobs=settings.jobs or 1, progress=_in_samples(settings.progress, done)).build(
        out, source, record, categories, counted=f"groups of at most {_GROUP} samples"
    )
    return replace(report, images=done[report.images], resumed=done[report.resumed])


def _checked_options(out: str | Path, options: Mapping[str, Any]) -> BuildOptions:
    settings = BuildOptions.checked(out, options)
    if settings.image_list is not None:
        raise ValueError("image_list is for images in files; choose a generator's samples by category, count and first")
    if settings.rejected_sheet is not None:
        raise ValueError("rejected_sheet is for images in files; remake renders the sample of a source again")
    return settings


def _in_samples(progress: Progress | None, done: Sequence[int]) -> Progress | None:
    """Reports samples, of which ``done`` has those up to each number of groups."""
    return progress and (lambda groups, total: progress(done[groups], done[total]))


def _record(
    given: str | FeatureGenerator,
    generator: FeatureGenerator,
    branch: BranchEnsemble,
    samples: GeneratedSamples,
    filters: Filters,
    classifier: Classifier | None,
) -> dict[str, Any]:
    """How a bank is built, for JSON."""
    return {
        "from": "generator",
        "generator": given if isinstance(given, str) else generator.name,
        "generator_fingerprint": generator.fingerprint,
        "branch_fingerprint": branch.fingerprint,
        "branch": branch.record,
        "classifier": getattr(classifier, "__name__", None),
        **vars(samples),
        **vars(filters),
    }


def remake(generator: FeatureGenerator, source: str) -> NDArray[np.uint8]:
    """The image that a foreground of a generated bank was cut out of: uint8 ``[H, W, 3]``, RGB.

    Args:
        generator: the same; see ``generator_fingerprint`` under ``built`` of ``ForegroundBank.info()``.
        source: of the foreground.

    Raises:
        ValueError: it is not the source of a generated foreground, or of another generator.
    """
    key = SampleKey.from_source(source)
    if not source.startswith(short_name(generator) + " "):
        raise ValueError(f"{source!r} is of another generator than {short_name(generator)}")
    return render_sample(generator, sample_latent(generator, key), key).image


class _Segmented(NamedTuple):
    """A sample of a group."""

    source: str
    label: int
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    uncertainty: float
    probability: float


@dataclass(frozen=True)
class _Extractor:
    """Renders and cuts out the samples of one group after the other."""

    generator: FeatureGenerator
    branch: BranchEnsemble
    labels: dict[int, int]
    filters: Filters
    classifier: Classifier | None
    rules: ExtractionRules

    def files(self, item: Sequence[SampleKey]) -> tuple[Path, ...]:
        """None are read."""
        return ()

    def objects(self, item: Sequence[SampleKey], log: BuildLog) -> Iterator[Foreground]:
        """The foregrounds of a group that no filter leaves out."""
        group = [self._segmented(key) for key in item]
        improbable = highest([-own.probability for own in group], 1 - self.filters.keep)
        group = self._without(improbable, group, _IMPROBABLE, log)
        uncertain = highest([own.uncertainty for own in group], self.filters.drop)
        for sample in self._without(uncertain, group, _UNCERTAIN, log):
            alpha = soft_alpha(sample.mask, sample.mask.shape[::-1])
            annotation = Annotation(sample.label, sample.source)
            try:
                yield extract_from_image(sample.image, alpha, annotation, self.rules, soft=True)
                log.mask_sources[_BY_BRANCH] += 1
            except RejectedObject as reason:
                log.drop(str(reason), sample.source)

    def _without(self, places: set[int], group: list[_Segmented], reason: str, log: BuildLog) -> list[_Segmented]:
        for place in sorted(places):
            log.drop(reason, group[place].source)
        return [own for place, own in enumerate(group) if place not in places]

    def _segmented(self, key: SampleKey) -> _Segmented:
        sample = render_sample(self.generator, sample_latent(self.generator, key), key)
        probabilities = self.branch.probabilities(sample, key.label)
        return _Segmented(
            key.source(short_name(self.generator), self.generator.class_names[key.label]),
            self.labels[key.label],
            sample.image,
            mode_mask(probabilities, self.filters.min_region),
            float(uncertainty(probabilities[:, None], self.filters.uncertain_pixels)),
            1.0 if self.classifier is None else _probability(self.classifier, sample.image, key),
        )


def _probability(classifier: Classifier, image: NDArray[np.uint8], key: SampleKey) -> float:
    try:
        probability = float(classifier(image, key.label))
    except Exception as error:  # whatever a user's function raises
        raise ValueError(f"classifier: {type(error).__name__}: {error}") from error
    if not math.isfinite(probability):
        raise ValueError(
            f"classifier: expected a finite number, got {probability} for class {key.label}, number {key.number}"
        )
    return probability
