"""Writes composites of a data set to disk."""

from __future__ import annotations

import hashlib
import io
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml

from terse_aug._version import __version__
from terse_aug.bank.build.chunks import identity_of
from terse_aug.bank.build.report import Progress
from terse_aug.bank.build.workers import check_jobs, run_in_order
from terse_aug.export.folder import OutputFolder
from terse_aug.export.labels import NO_MASKS, class_numbers
from terse_aug.export.names import output_stems
from terse_aug.export.report import ExportReport
from terse_aug.export.samples import ComposeNumbered, ComposeTask, ImageItem
from terse_aug.export.settings import ExportSettings
from terse_aug.policies import Policy
from terse_aug.preview import LabelledImages
from terse_aug.terse import Terse

_AT_ONCE = 8
"""Composites of an image that are made together, so that it is read once for them."""
_WORTHWHILE_SECONDS = 30.0
"""Of work that is left, for other processes to pay, in which torch has to be loaded."""
_STOPS = (KeyboardInterrupt, ChildProcessError, OSError)


def write_composites(
    terse: Terse,
    data: LabelledImages,
    out: str | Path,
    export: ExportSettings | None = None,
    *,
    image_size: int | None = None,
    validation: str | Path | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Compose the images of a data set, and write them with their labels.

    Composite c (1, 2, ...) of image i of n has the number ``(c - 1) * n + i``, and is what a training gets by
    :meth:`terse_aug.Terse.composer` for the sample of that number. It depends neither on ``jobs`` nor on whether the
    run was interrupted. A run that was stopped continues when it is started again.

    Args:
        terse: has bank, policy and settings.
        data: the images.
        out: folder to write; new, empty, or that of the same run.
        export: what is written.
        image_size: resize images to this shorter side, pixels.
        validation: folder of validation images to name in YOLO's ``data.yaml``.
        jobs: number of processes; by default one for each core, at most 8, if the run takes long enough.
        progress: called with the number of files done and in total.

    Raises:
        FileNotFoundError: no folder around ``out``, or no ``validation``.
        ValueError: ``out`` holds something else, or a setting is outside its range or does not fit the data.
        OSError, KeyboardInterrupt, ChildProcessError: the disk is full or cannot be written, interrupted, or a process
            died; the message says how many files are kept.
    """
    export = export or ExportSettings()
    check_jobs(jobs)
    folder, val = OutputFolder(Path(out)), None if validation is None else Path(validation).resolve()
    _check_places(folder.path, data, export, val)
    if export.format == "yolo-seg" and data.boxes_only:
        raise ValueError(NO_MASKS)
    numbers = class_numbers(data.classes)
    task = ComposeTask(ComposeNumbered(terse), folder, export, image_size, len(data.names), numbers)
    common = _CommonFiles(folder, _Source.of(data, export), export, val, terse.bank.keypoint_names)
    about = {"image_size": image_size, "validation": None if val is None else str(val)}
    identity = run_identity(terse, data) | asdict(export) | about
    report = ExportReport.of(folder.path, data.dropped)
    with folder.opened(identity) as finished:
        if finished is not None:
            earlier = ExportReport.from_json(folder.path, finished)
            _check_finished(earlier, common)
            return earlier
        try:
            report.resumed = _compose_rest(task, common.source, jobs, progress or (lambda done, total: None))
            common.write(report)
            folder.finish(identity, report.as_json())
        except _STOPS as error:
            if not (written := folder.written()):
                raise
            kept = f"{written} of {len(common.source)} images are written and kept: run the same again to resume"
            raise type(error)(f"{str(error) or 'interrupted'}; {kept}") from error
    return report


def _compose_rest(task: ComposeTask, source: _Source, jobs: int | None, progress: Progress) -> int:
    """Write all files that have no record; returns how many images were written before."""
    done, total, written = set(task.folder.records()), len(source), task.folder.written()
    progress(len(done), total)
    results = run_in_order(
        task, source, source.chunks(done), jobs, lambda count: progress(len(done) + count, total), _WORTHWHILE_SECONDS
    )
    with closing(results):
        deque(results, maxlen=0)
    return written


@dataclass(frozen=True)
class _Source:
    """The files to write, as numbers of an image and of its copies.

    Attributes:
        data: the images.
        stems: see :func:`output_stems`.
        copies: numbers of the copies of each image, 0 for the original.
        per_image: by how much the numbers of files grow from one image to the next.
    """

    data: LabelledImages
    stems: list[list[str]]
    copies: range
    per_image: int

    @classmethod
    def of(cls, data: LabelledImages, export: ExportSettings) -> _Source:
        with_originals = export.originals != "none"
        stems = output_stems(data.names, export.copies, with_originals)
        return cls(data, stems, range(0 if with_originals else 1, export.copies + 1), export.copies + 1)

    def __len__(self) -> int:
        """How many files there are."""
        return len(self.data.names) * len(self.copies)

    def numbers(self) -> Iterable[int]:
        """Of all files, in order."""
        return (index * self.per_image + copy for index in range(len(self.data.names)) for copy in self.copies)

    def chunks(self, done: set[int]) -> list[list[tuple[int, int]]]:
        """What is to be done, as pairs of image and copy; those of a chunk are of one image."""
        chunks = []
        for index in range(len(self.data.names)):
            left = [(index, copy) for copy in self.copies if index * self.per_image + copy not in done]
            chunks += [left[start : start + _AT_ONCE] for start in range(0, len(left), _AT_ONCE)]
        return chunks

    def prepared(self, chunk: Sequence[tuple[int, int]]) -> list[ImageItem]:
        """See :class:`terse_aug.bank.build.workers.ChunkSource`."""
        index = chunk[0][0]
        return [ImageItem(self.data.only(index), index, self.stems[index], [copy for _, copy in chunk])]


def run_identity(terse: Terse, data: LabelledImages) -> dict[str, Any]:
    """What composites depend on beside the export settings: the same for the same run, for JSON."""
    about: dict[str, Any] = {
        "version": __version__,
        "bank": terse.bank.identity,
        "classes": {str(label): name for label, name in sorted(data.classes.items())},
        "pasted classes": {str(label): name for label, name in sorted(terse.bank.categories.items())},
        "policy": _policy_identity(terse.policy),
        "paste": asdict(terse.paste),
        "sampler": terse.sampler.identity,
        "seed": terse.seed,
        "images and labels": identity_of({}, [data.names, data.labels], chain.from_iterable(data.files)),
    }
    if (pool := terse.planner.pool) is not None:
        names = [pool.name(number) for number in range(len(pool))]
        about["backgrounds"] = [pool.probability, identity_of({}, names, map(Path, names))]
    if (distractors := terse.planner.distractors) is not None:
        about["distractors"] = [distractors.bank.identity, *distractors.count]
    return about


def _policy_identity(policy: Policy) -> str:
    """Of the kind of policy, its settings and what it has learned."""
    content = io.BytesIO()
    for name, value in sorted(policy.state_dict().items()):
        content.write(name.encode())
        content.write(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    plain = {name: value for name, value in vars(policy).items() if isinstance(value, bool | int | float | str)}
    content.write(repr(sorted(plain.items())).encode())
    return f"{type(policy).__name__} {hashlib.blake2b(content.getvalue(), digest_size=8).hexdigest()}"


def _check_places(out: Path, data: LabelledImages, export: ExportSettings, validation: Path | None) -> None:
    for folder in {*data.folders, *(file.parent for files in data.files for file in files)}:
        if out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{out}: expected a folder outside of that of the images, {folder}")
    if validation is not None and export.format == "coco":
        raise ValueError("validation images are named in YOLO's data.yaml; format coco has none")
    if validation is not None and not validation.is_dir():
        raise FileNotFoundError(f"expected a folder of validation images at {validation}, found none")


def _check_finished(report: ExportReport, common: _CommonFiles) -> None:
    """Check that no file of a finished run is lost; its report counts the images, some of which could not be read."""
    folder, source = common.folder, common.source
    lost = [] if common.path.is_file() else [common.path.name]
    for name in ("images",) if common.export.format == "coco" else ("images", "labels"):
        found = {path.relative_to(folder.path / name).with_suffix("").as_posix() for path in _files(folder.path / name)}
        missing = [own[copy] for own in source.stems for copy in source.copies if own[copy] not in found]
        count = len(missing) + report.images - len(source)
        lost += [f"{count} of {report.images} files (such as {name}/{missing[0]})"] if count > 0 else []
    if lost:
        raise ValueError(
            f"{folder.path}: the run was finished before, but {' and '.join(lost)} is missing: delete the folder, "
            "and run the same again"
        )


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


@dataclass(frozen=True)
class _CommonFiles:
    """What is written once all images are: a COCO JSON or YOLO's ``data.yaml``.

    Attributes:
        folder: where to.
        source: what was written.
        export: how.
        validation: folder of validation images for ``data.yaml``.
        keypoint_names: of the bank.
    """

    folder: OutputFolder
    source: _Source
    export: ExportSettings
    validation: Path | None
    keypoint_names: Sequence[str]

    @property
    def path(self) -> Path:
        """Of the file."""
        return self.folder.path / ("annotations.json" if self.export.format == "coco" else "data.yaml")

    def write(self, report: ExportReport) -> None:
        """Write the file, and count all images in the report."""
        folder, data = self.folder, self.source.data
        if self.export.format == "coco":
            with folder.writing(self.path) as path, open(path, "w", encoding="ascii") as file:
                _write_coco(file, self._counted(report), data.classes, self.keypoint_names)
        else:
            deque(self._counted(report), maxlen=0)
            content: dict[str, Any] = {"train": "images"}
            if self.validation is not None:
                content["val"] = str(self.validation)
            content["names"] = {number: data.classes[label] for label, number in class_numbers(data.classes).items()}
            text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
            folder.write(self.path, text.encode("utf-8"))
        if not report.images:
            raise ValueError(f"no image of {data.origin} can be used: {'; '.join(report.rejected.lines())}")

    def _counted(self, report: ExportReport) -> Iterator[Mapping[str, Any]]:
        """The records of the images that were written, in order; all of them are counted."""
        for number in self.source.numbers():
            record = self.folder.record(number)
            report.add(record, is_original=number % self.source.per_image == 0)
            if record["image"] is not None:
                yield record


def _write_coco(
    file: TextIO, records: Iterable[Mapping[str, Any]], classes: Mapping[int, str], keypoint_names: Sequence[str]
) -> None:
    """A COCO JSON, one annotation after the other, as those of all images may not fit into memory."""
    info = {"description": "composites with corrected labels", "version": f"terse-aug {__version__}"}
    categories: list[dict[str, Any]] = [{"id": label, "name": name} for label, name in sorted(classes.items())]
    images: list[str] = []
    count = keypoints = 0
    file.write(f'{{"info": {json.dumps(info)}, "licenses": [],\n"annotations": [')
    for record in records:
        images.append(json.dumps({"id": len(images) + 1, **record["image"]}))
        for entry in record["annotations"]:
            count += 1
            keypoints = max(keypoints, len(entry.get("keypoints", [])) // 3)
            own = {"id": count, "image_id": len(images), **entry}
            file.write(("," if count > 1 else "") + "\n" + json.dumps(own))
    if len(keypoint_names) != keypoints:  # a bank without keypoints has no names
        keypoint_names = [f"keypoint {number + 1}" for number in range(keypoints)]
    for category in categories if keypoints else ():
        category |= {"keypoints": list(keypoint_names), "skeleton": []}
    file.write('\n],\n"images": [\n' + ",\n".join(images) + f'\n],\n"categories": {json.dumps(categories)}}}\n')
