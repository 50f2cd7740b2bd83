"""YOLO's text files, of boxes or of polygons. Imports the standard library, pillow and, for a data.yaml, PyYAML."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from terse_aug.bank.inputs.file_names import Files
from terse_aug.bank.inputs.images import image_size, is_in_colour
from terse_aug.bank.inputs.repair import SPACED_NAME, Malformed, as_number
from terse_aug.bank.readers.annotation_collector import Collector, Reading

_IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def read_yolo(
    images: Path, labels: Path | None = None, names: Path | Sequence[str] | Mapping[int, str] | None = None
) -> Reading:
    """Read YOLO's labels: a line for each object, of its class number and its box (middle x, middle y, width, height)
    or the points of its polygon, all as parts of the image's width and height. Of a data set with keypoints
    (``kpt_shape`` in its ``data.yaml``) the boxes are taken; without that file its lines look like polygons.

    Args:
        images: folder of images, searched at any depth.
        labels: folder of text files at the same places; by default where the trainers look, which is the last
            ``images`` of each path replaced by ``labels``.
        names: of the classes, in order or by number; or a ``data.yaml`` or a ``classes.txt`` that has them. Labels are
            the class numbers. By default a ``data.yaml`` or ``classes.txt`` beside the folders.

    Raises:
        FileNotFoundError: a folder or the file of names does not exist.
        ValueError: there are no class names, or no object can be read.
    """
    for folder in (images, labels):
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(f"expected a folder at {folder}, found none")
    source = names if names is not None else _beside(images, labels)
    known = _names(source)
    keypoints = _keypoint_values(source)
    collected = Collector(names={name.strip(): number for number, name in known.items()})
    collected.ledger.repair([SPACED_NAME] * sum(name != name.strip() for name in known.values()), str(source)[:100])
    known = {number: name.strip() for number, name in known.items()}
    paths = sorted(path for path in images.rglob("*") if path.suffix.lower() in _IMAGES)
    texts = _Labels([_labels_of(path, images, labels) for path in paths], collected)
    found = [texts.find(said) for said in texts.said]
    shared: dict[Path | None, list[Path]] = defaultdict(list)
    for path, text in zip(paths, found, strict=True):
        shared[text].append(path)
    for path, text in zip(paths, found, strict=True):
        if text is None:
            collected.ledger.drop("image without a label file", path.name)
            continue
        if len(shared[text]) > 1 and not _is_the_photograph(path, shared[text]):
            collected.ledger.drop("label file is that of several images", path.name)
            continue
        try:
            lines = text.read_text(encoding="utf-8-sig").splitlines()
        except (UnicodeDecodeError, OSError):
            collected.ledger.drop("label file is no text", text.name)
            continue
        size = image_size(path)
        if size is None:
            collected.ledger.drop("image file cannot be read", path.name)
            continue
        number = collected.image(path.relative_to(images).as_posix(), *size)
        for row, line in enumerate(lines, 1):
            if line.strip():
                parts = line.split()
                if keypoints and len(parts) == 5 + keypoints:
                    parts = parts[:5]
                _read_line(parts, number, row, size, known, f"{text.name}, line {row}", collected)
    return collected.reading("yolo", images.name, images)


def _is_the_photograph(path: Path, images: Sequence[Path]) -> bool:
    """Whether this one alone of some images is in colour: beside a photograph may lie its mask or its depths."""
    return [own for own in images if is_in_colour(own)] == [path]


def _read_line(
    parts: list[str],
    image: int,
    row: int,
    size: tuple[int, int],
    names: Mapping[int, str],
    where: str,
    collected: Collector,
) -> None:
    height, width = size
    try:
        values = [as_number(part) for part in parts]
        if values[0] != int(values[0]) or int(values[0]) not in names:
            raise Malformed("class number has no name")
        if len(values) in (5, 6):  # a sixth is the confidence of a prediction
            x, y, across, down = values[1:5]
            shape: dict[str, Any] = {
                "bbox": [(x - across / 2) * width, (y - down / 2) * height, across * width, down * height]
            }
        elif len(values) >= 7 and len(values) % 2:
            shape = {"segmentation": [[value * (height if at % 2 else width) for at, value in enumerate(values[1:])]]}
        else:
            raise Malformed("line is neither class and box nor class and polygon")
    except Malformed as reason:
        collected.drop(str(reason), where, image)
        return
    collected.object(image, names[int(values[0])], row, **shape)


class _Labels:
    """Label files, by the names that the images' names make for them."""

    def __init__(self, said: list[Path], collected: Collector):
        self.said = said
        self._collected = collected
        names: dict[Path, list[str]] = defaultdict(list)
        for path in said:
            names[path.parent].append(path.name)
        self._folders = {folder: Files(folder, own, deep=False) for folder, own in names.items()}

    def find(self, said: Path) -> Path | None:
        """The file, also where it spells the name otherwise; ``None`` if there is none."""
        try:
            name, difference = self._folders[said.parent].find(said.name)
        except LookupError:
            return None
        if difference:
            self._collected.ledger.repair([f"label {difference}"], name)
        found = said.parent / name
        return found if found.is_file() else None


def _labels_of(image: Path, images: Path, labels: Path | None) -> Path:
    if labels is not None:
        return (labels / image.relative_to(images)).with_suffix(".txt")
    parts = list(Path(os.path.abspath(image)).parts)
    for at in reversed(range(len(parts) - 1)):
        if parts[at] == "images":
            parts[at] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _beside(images: Path, labels: Path | None) -> Path:
    texts = _labels_of(images / "any", images, labels).parent
    folders = [images, *list(images.resolve().parents)[:2], texts]
    places = [folder / name for folder in folders for name in _NAME_FILES]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise ValueError(
            "expected the class names: give names, or put a data.yaml or classes.txt beside the images or labels, "
            f"none of {', '.join(str(path) for path in places)} exists"
        )
    return found


_NAME_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")


def _names(names: Path | Sequence[str] | Mapping[int, str]) -> dict[int, str]:
    entries: Any = names
    if isinstance(names, Path):
        entries = _names_in(names)
    if isinstance(entries, Mapping):
        pairs: Iterable[tuple[Any, Any]] = entries.items()
    elif isinstance(entries, Sequence) and not isinstance(entries, str):
        pairs = enumerate(entries)
    else:
        raise ValueError(f"expected a list of class names or a mapping of numbers to them, got {entries!r}")
    known = {int(number): str(name) for number, name in pairs}
    plain = {name.strip() for name in known.values()}
    if not known or "" in plain or len(plain) < len(known):
        raise ValueError(f"expected class names, each once, got {list(known.values())}")
    return known


def _names_in(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"expected a file of class names at {path}, found none")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix not in (".yaml", ".yml"):
        return text.rstrip().splitlines()  # an empty line counts: numbers are those of the lines
    content = _yaml(path)
    if "names" not in content:
        raise ValueError(f"{path}: expected a data.yaml with names")
    return content["names"]


def _keypoint_values(source: Any) -> int:
    """How many numbers follow the box on a line of a data set with keypoints, by its ``data.yaml``; 0 for none."""
    if not isinstance(source, Path) or source.suffix not in (".yaml", ".yml"):
        return 0
    shape = _yaml(source).get("kpt_shape")
    return int(shape[0]) * int(shape[1]) if isinstance(shape, Sequence) and len(shape) == 2 else 0


def _yaml(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: expected YAML, got something else ({error})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a data.yaml with names")
    return content
