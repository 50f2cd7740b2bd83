"""YOLO: a text file of boxes or polygons for each image."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from terse_aug.bank.build.report import BuildLog, BuildReport
from terse_aug.bank.inputs.file_names import match_names
from terse_aug.bank.inputs.folders import check_folders
from terse_aug.bank.inputs.image_endings import is_image_name
from terse_aug.bank.inputs.images import image_size, is_color_image, why_unreadable
from terse_aug.bank.inputs.repair import SPACED_NAME, Malformed, as_number
from terse_aug.bank.inputs.text_files import check_encoding, read_text
from terse_aug.bank.readers.annotated_images import AnnotationOptions
from terse_aug.bank.readers.annotation_collector import AnnotationCollector
from terse_aug.bank.readers.other_formats import names_other_formats
from terse_aug.bank.readers.several_parts import Paths, as_path, takes_several
from terse_aug.bank.readers.yolo_lines import LineLayout

_NAME_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")


@takes_several(own_labels=True)
@names_other_formats
def build_from_yolo(
    images: Paths,
    out: str | Path,
    *,
    labels: Paths | None = None,
    names: str | Path | Sequence[str] | Mapping[int, str] | None = None,
    encoding: str | None = None,
    extra_values: int | None = None,
    **options: Any,
) -> BuildReport:
    """Build a bank from YOLO's text files; lines with polygons have masks, lines with boxes none.

    A line holds the class number and either a box (centre x, centre y, width, height) or the points of a polygon, as
    fractions of the image's width and height. A confidence and a track id at its end are left out where the lines of
    the data set show that they are there. Of a data set with keypoints (``kpt_shape`` in its ``data.yaml``, or a
    visibility of 0, 1 or 2 at its place in every line) the boxes are used; keypoints of x and y without ``kpt_shape``
    look like polygons. A line that does not say what it is is rejected. Labels are the class numbers, from 0 on.
    ``names`` may also be the names, in order or by number.

    Args:
        images: folder of images, searched at any depth.
        out: the bank to write.
        labels: folder of text files, in the same subfolders; by default, as for YOLO's trainers, the path of the
            images with its last folder "images" replaced by "labels".
        names: file of the class names, a data.yaml or classes.txt; by default the one beside the folders.
        encoding: of that file and of the text files, such as cp1252 or gb18030; by default UTF-8, UTF-16 or the
            system's own.
        extra_values: how many numbers at the end of every line are neither box nor polygon, such as 1 for a
            confidence, 2 for a confidence and a track id; by default what the lines themselves show.
        options: see :class:`AnnotationOptions`.

    Raises:
        FileNotFoundError: a folder or the file of names does not exist.
        ValueError: there are no class names, their encoding is unknown, ``extra_values`` is below 0, or no object can
            be read; and as :class:`AnnotationOptions`.
    """
    settings = AnnotationOptions.checked(out, options)
    if extra_values is not None and extra_values < 0:
        raise ValueError(f"expected extra_values of 0 or more numbers, got {extra_values}")
    check_encoding(encoding)
    images, labels = as_path(images), None if labels is None else as_path(labels)
    check_folders(images, labels)
    source = _names_beside(images, labels) if names is None else Path(names) if isinstance(names, str) else names
    content = _read_names(source, encoding) if isinstance(source, Path) else {"names": source}
    class_names = _class_names(content["names"], source)
    collector = AnnotationCollector({name.strip(): number for number, name in class_names.items()})
    spaced = sum(name != name.strip() for name in class_names.values())
    collector.log.repair([SPACED_NAME] * spaced, str(source)[:100])
    reader = _LineReader({number: name.strip() for number, name in class_names.items()}, encoding, collector)
    for path, text in _pairs(images, labels, collector.log, with_backgrounds=settings.only_read):
        reader.read(path, text, path.relative_to(images).as_posix())
    reader.finish(_keypoint_values(content, source), extra_values)
    return collector.build("yolo", images.name, images, out, settings)


def _pairs(
    images: Path, labels: Path | None, log: BuildLog, with_backgrounds: bool
) -> Iterable[tuple[Path, Path | None]]:
    """Images and their label files; those of each without the other are counted.

    An image without a label file is one without objects, which is of no use for a bank.
    """
    paths = sorted(path for path in images.rglob("*") if is_image_name(path) and path.is_file())
    texts = _find_label_files([_label_path(path, images, labels) for path in paths], log)
    images_of: dict[Path | None, list[Path]] = defaultdict(list)
    for path, text in zip(paths, texts, strict=True):
        images_of[text].append(path)
    for path, text in zip(paths, texts, strict=True):
        if text is None and with_backgrounds and any(texts):
            yield path, None
        elif text is None:
            log.drop("image without a label file", path.name)
        elif len(images_of[text]) > 1 and [own for own in images_of[text] if is_color_image(own)] != [path]:
            # Beside a photograph may lie its mask or its depth map.
            log.drop("label file belongs to several images", path.name)
        else:
            yield path, text
    for text in _label_files(images, labels, texts) - set(texts):
        log.drop("label file without an image", text.name)


def _label_files(images: Path, labels: Path | None, known: Iterable[Path | None]) -> set[Path]:
    """All label files: below the folder of labels, or beside those that are known."""
    root = _label_path(images / "any", images, labels).parent
    if labels is not None or "images" in Path(os.path.abspath(images)).parts:
        found = set(root.rglob("*.[tT][xX][tT]"))
    else:
        folders = {root, *(text.parent for text in known if text is not None)}
        found = {path for folder in folders for path in folder.glob("*.[tT][xX][tT]")}
    return {path for path in found if path.name not in _NAME_FILES and not path.name.startswith(".")}


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


class _Line(NamedTuple):
    """A line of a label file; number and size of its image, and where the line is found."""

    image: int
    size: tuple[int, int]
    row: int
    where: str
    category: str
    values: list[float]


class _LineReader:
    """Reads the lines of label files into a collector. What they mean shows in all of them together."""

    def __init__(self, names: Mapping[int, str], encoding: str | None, collector: AnnotationCollector):
        self._names = names
        self._encoding = encoding
        self._collector = collector
        self._lines: list[_Line] = []

    def read(self, image: Path, text: Path | None, name: str) -> None:
        """The lines of an image, if it has a label file; ``name`` is relative to the folder of images."""
        file = image.name if text is None else text.name
        try:
            lines = [] if text is None else read_text(text, self._encoding).splitlines()
        except (ValueError, OSError):
            self._collector.log.drop("label file is no text", file)
            return
        try:
            size = image_size(image)
        except ValueError as error:
            self._collector.log.drop(why_unreadable(error, "image file cannot be read"), image.name)
            return
        number = self._collector.add_image(name, *size)
        for row, line in enumerate(lines, 1):
            if parts := line.split():
                where = f"{file}, line {row}"
                try:
                    category, *values = (as_number(part) for part in parts)
                    if category != int(category) or int(category) not in self._names:
                        raise Malformed("class number has no name")
                except Malformed as reason:
                    self._collector.reject(str(reason), where, number)
                else:
                    self._lines.append(_Line(number, size, row, where, self._names[int(category)], values))

    def finish(self, keypoint_values: int | None, extra_values: int | None) -> None:
        """Add the objects of all lines; see :meth:`LineLayout.of`."""
        layout = LineLayout.of((line.values for line in self._lines), keypoint_values, extra_values)
        for line in self._lines:
            try:
                shape, repair = layout.shape(line.values)
            except Malformed as reason:
                self._collector.reject(str(reason), line.where, line.image)
                continue
            self._collector.log.repair([repair] if repair else [], line.where)
            self._collector.add_object(line.image, line.category, line.row, **_in_pixels(shape, *line.size))


def _in_pixels(shape: Sequence[float], height: int, width: int) -> dict[str, Any]:
    """A box or a polygon as ``bbox`` or ``segmentation`` of COCO."""
    if len(shape) == 4:
        x, y, w, h = shape
        return {"bbox": [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]}
    return {"segmentation": [[value * (height if at % 2 else width) for at, value in enumerate(shape)]]}


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


def _class_names(entries: Any, source: Any) -> dict[int, str]:
    if isinstance(entries, Mapping):
        pairs: Iterable[tuple[Any, Any]] = entries.items()
    elif isinstance(entries, Sequence) and not isinstance(entries, str):
        pairs = enumerate(entries)
    else:
        raise ValueError(f"{source}: expected a list of class names or a mapping of numbers to them, got {entries!r}")
    try:
        known = {int(number): str(name) for number, name in pairs}
    except ValueError as error:
        raise ValueError(f"{source}: expected names by their class numbers, got {entries!r}") from error
    stripped = {name.strip() for name in known.values()}
    if not known or "" in stripped or len(stripped) < len(known):
        raise ValueError(f"{source}: expected class names, each once, got {list(known.values())}")
    return known


def _read_names(path: Path, encoding: str | None) -> Mapping[str, Any]:
    """The content of a data.yaml, or of a list of names as such."""
    if not path.is_file():
        raise FileNotFoundError(f"expected a file of class names at {path}, found none")
    text = read_text(path, encoding)
    if path.suffix not in (".yaml", ".yml"):
        # An empty line counts: class numbers are line numbers.
        return {"names": text.rstrip().splitlines()}
    try:
        # As text: YAML 1.1 takes the classes no, on and 1e3 for other values.
        content = yaml.load(text, yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: expected YAML, got something else ({error})") from error
    if not isinstance(content, Mapping) or "names" not in content:
        raise ValueError(f"{path}: expected a data.yaml with names")
    return content


def _keypoint_values(content: Mapping[str, Any], source: Any) -> int | None:
    """How many numbers follow the box on a line of a data set with keypoints, by its ``data.yaml``."""
    shape = content.get("kpt_shape")
    if not shape:
        return None
    try:
        count, size = (int(value) for value in shape)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: expected kpt_shape [number, 2 or 3], got {shape!r}") from error
    return count * size
