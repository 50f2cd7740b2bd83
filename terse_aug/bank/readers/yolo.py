"""YOLO: a text file of boxes or polygons for each image."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from terse_aug.bank.build.report import BuildLog, BuildReport
from terse_aug.bank.inputs.file_names import match_names
from terse_aug.bank.inputs.folders import check_folders
from terse_aug.bank.inputs.images import image_size, is_color_image
from terse_aug.bank.inputs.repair import SPACED_NAME, Malformed, as_number
from terse_aug.bank.readers.annotated_images import AnnotationOptions
from terse_aug.bank.readers.annotation_collector import AnnotationCollector
from terse_aug.bank.readers.other_formats import names_other_formats

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
_NAME_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")


@names_other_formats
def build_from_yolo(
    images: str | Path,
    out: str | Path,
    *,
    labels: str | Path | None = None,
    names: str | Path | Sequence[str] | Mapping[int, str] | None = None,
    **options: Any,
) -> BuildReport:
    """Build a bank from YOLO's text files; lines with polygons have masks, lines with boxes none.

    A line holds the class number and either a box (centre x, centre y, width, height) or the points of a polygon, as
    fractions of the image's width and height. Of a data set with keypoints (``kpt_shape`` in its ``data.yaml``) the
    boxes are used; without that file such lines look like polygons. Labels are the class numbers, from 0 on.
    ``names`` may also be the names, in order or by number.

    Args:
        images: folder of images, searched at any depth.
        out: the bank to write.
        labels: folder of text files, in the same subfolders; by default, as for YOLO's trainers, the path of the
            images with its last folder "images" replaced by "labels".
        names: file of the class names, a data.yaml or classes.txt; by default the one beside the folders.
        options: see :class:`AnnotationOptions`.

    Raises:
        FileNotFoundError: a folder or the file of names does not exist.
        ValueError: there are no class names, or no object can be read; and as :class:`AnnotationOptions`.
    """
    settings = AnnotationOptions.checked(out, options)
    images, labels = Path(images), None if labels is None else Path(labels)
    check_folders(images, labels)
    source = _names_beside(images, labels) if names is None else Path(names) if isinstance(names, str) else names
    class_names = _class_names(source)
    collector = AnnotationCollector({name.strip(): number for number, name in class_names.items()})
    spaced = sum(name != name.strip() for name in class_names.values())
    collector.log.repair([SPACED_NAME] * spaced, str(source)[:100])
    lines = _LineReader({number: name.strip() for number, name in class_names.items()}, source, collector)
    for path, text in _pairs(images, labels, collector.log):
        lines.read(path, text, path.relative_to(images).as_posix())
    return collector.build("yolo", images.name, images, out, settings)


def _pairs(images: Path, labels: Path | None, log: BuildLog) -> Iterable[tuple[Path, Path]]:
    """Images and their label files; images without one are counted."""
    paths = sorted(path for path in images.rglob("*") if path.suffix.lower() in _SUFFIXES)
    texts = _find_label_files([_label_path(path, images, labels) for path in paths], log)
    images_of: dict[Path | None, list[Path]] = defaultdict(list)
    for path, text in zip(paths, texts, strict=True):
        images_of[text].append(path)
    for path, text in zip(paths, texts, strict=True):
        if text is None:
            log.drop("image without a label file", path.name)
        elif len(images_of[text]) > 1 and [own for own in images_of[text] if is_color_image(own)] != [path]:
            # Beside a photograph may lie its mask or its depth map.
            log.drop("label file belongs to several images", path.name)
        else:
            yield path, text


def _find_label_files(paths: list[Path], log: BuildLog) -> list[Path | None]:
    """The files, also if they spell a name differently; ``None`` for those that do not exist."""
    folders = dict.fromkeys(path.parent for path in paths)
    existing = [file for folder in folders for file in sorted(folder.glob("*.[tT][xX][tT]"))]
    matches = match_names(map(Path.as_posix, paths), map(Path.as_posix, existing))
    files: list[Path | None] = []
    for path in paths:
        match = matches.get(path.as_posix())
        if match is not None and match.name is not None:
            log.repair([f"label {match.reason}"], path.name)
            path = Path(match.name)
        files.append(path if path.is_file() else None)
    return files


class _LineReader:
    """Reads the lines of label files into a collector. The source of the names may give the keypoints."""

    def __init__(self, names: Mapping[int, str], source: Any, collector: AnnotationCollector):
        self._names = names
        self._keypoint_values = _keypoint_values(source)
        self._collector = collector

    def read(self, image: Path, text: Path, name: str) -> None:
        """The objects of an image; ``name`` is relative to the folder of images."""
        try:
            lines = text.read_text(encoding="utf-8-sig").splitlines()
        except (UnicodeDecodeError, OSError):
            self._collector.log.drop("label file is no text", text.name)
            return
        size = image_size(image)
        if size is None:
            self._collector.log.drop("image file cannot be read", image.name)
            return
        number = self._collector.add_image(name, *size)
        for row, line in enumerate(lines, 1):
            if parts := line.split():
                try:
                    category, shape = self._object(parts, *size)
                except Malformed as reason:
                    self._collector.reject(str(reason), f"{text.name}, line {row}", number)
                else:
                    self._collector.add_object(number, category, row, **shape)

    def _object(self, parts: list[str], height: int, width: int) -> tuple[str, dict[str, Any]]:
        if self._keypoint_values and len(parts) == 5 + self._keypoint_values:
            parts = parts[:5]
        category, *values = (as_number(part) for part in parts)
        if category != int(category) or int(category) not in self._names:
            raise Malformed("class number has no name")
        name = self._names[int(category)]
        if len(values) in (4, 5):  # a fifth is the confidence of a prediction
            x, y, w, h = values[:4]
            return name, {"bbox": [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]}
        if len(values) >= 6 and len(values) % 2 == 0:
            return name, {"segmentation": [[v * (height if at % 2 else width) for at, v in enumerate(values)]]}
        raise Malformed("line is neither class and box nor class and polygon")


def _label_path(image: Path, images: Path, labels: Path | None) -> Path:
    if labels is not None:
        return (labels / image.relative_to(images)).with_suffix(".txt")
    parts = list(Path(os.path.abspath(image)).parts)
    for at in reversed(range(len(parts) - 1)):
        if parts[at] == "images":
            parts[at] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _names_beside(images: Path, labels: Path | None) -> Path:
    folders = [images, *list(images.resolve().parents)[:2], _label_path(images / "any", images, labels).parent]
    places = [folder / name for folder in folders for name in _NAME_FILES]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise ValueError(
            "expected the class names: give names, or put a data.yaml or classes.txt beside the images or labels, "
            f"none of {', '.join(str(path) for path in places)} exists"
        )
    return found


def _class_names(names: Path | Sequence[str] | Mapping[int, str]) -> dict[int, str]:
    entries: Any = _read_names(names) if isinstance(names, Path) else names
    if isinstance(entries, Mapping):
        pairs: Iterable[tuple[Any, Any]] = entries.items()
    elif isinstance(entries, Sequence) and not isinstance(entries, str):
        pairs = enumerate(entries)
    else:
        raise ValueError(f"expected a list of class names or a mapping of numbers to them, got {entries!r}")
    known = {int(number): str(name) for number, name in pairs}
    stripped = {name.strip() for name in known.values()}
    if not known or "" in stripped or len(stripped) < len(known):
        raise ValueError(f"expected class names, each once, got {list(known.values())}")
    return known


def _read_names(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"expected a file of class names at {path}, found none")
    if path.suffix not in (".yaml", ".yml"):
        # An empty line counts: class numbers are line numbers.
        return path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    content = _read_yaml(path)
    if "names" not in content:
        raise ValueError(f"{path}: expected a data.yaml with names")
    return content["names"]


def _keypoint_values(source: Any) -> int:
    """How many numbers follow the box on a line of a data set with keypoints, by its ``data.yaml``; 0 for none."""
    if not isinstance(source, Path) or source.suffix not in (".yaml", ".yml"):
        return 0
    shape = _read_yaml(source).get("kpt_shape")
    return int(shape[0]) * int(shape[1]) if isinstance(shape, Sequence) and len(shape) == 2 else 0


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: expected YAML, got something else ({error})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a data.yaml with names")
    return content
