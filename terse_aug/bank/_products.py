"""Builds a bank from product photographs on a plain ground. Imports numpy and pillow only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from terse_aug.bank._class_folders import class_of, labels_of
from terse_aug.bank._cut import Annotation, CutRules, Unusable, cut_from_image
from terse_aug.bank._exhibit import Exhibit
from terse_aug.bank._foreground import Foreground
from terse_aug.bank._images import NoAlphaError, read_image, read_mask, read_rgba
from terse_aug.bank._include import Include
from terse_aug.bank._pairing import paired
from terse_aug.bank._plain_ground import PlainGround
from terse_aug.bank._polarity import object_alpha
from terse_aug.bank._report import BuildReport, Ledger, Progress, build
from terse_aug.bank._writer import BankWriter

_BY_GROUND = "plain ground"


def build_from_products(
    folder: str | Path,
    out: str | Path,
    *,
    masks: str | Path | None = None,
    ground: PlainGround | None = None,
    category: str = "object",
    extent: float = 0.3,
    include: Iterable[str] | str | Path | None = None,
    rules: CutRules | None = None,
    drops: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BuildReport:
    """Build a bank from photographs of objects before a plain ground, or with masks.

    Pictures in a subfolder (at any depth below it) are of the class that it is named after. Labels are 1, 2, ... in the
    order of the class names. Without masks the object is what differs from the ground, see :class:`PlainGround`:
    pictures whose ground is not plain are left out, and shadows stay with their object. With masks, the object of each
    may be white or black; which it was taken for is told, per polarity, by the report.

    Args:
        folder: where the pictures are.
        out: the bank to write.
        masks: folder of masks ``NAME.png`` or ``NAME_mask.png`` of any image format, in the same subfolders or in none;
            grey values are alpha. It may be ``folder`` itself, see :func:`paired`, or lie in it.
        ground: how objects are told from the ground where there are no masks.
        category: class of the pictures that lie in ``folder`` itself.
        extent: natural size of all objects, see :class:`Foreground`: larger side over the square root of the
            background's area. A product's picture does not tell how large it is.
        include: image names to use, see :class:`Include`; all by default.
        rules: what is kept, see :class:`CutRules`; ``min_box_agreement`` means nothing here.
        drops: where to draw pictures of what was left out, see :func:`build_from_coco`.
        overwrite: replace an existing bank, and pictures.
        progress: called with images done and in total.

    Raises:
        FileNotFoundError: a folder does not exist.
        FileExistsError: ``out`` or ``drops`` exists and ``overwrite`` is false.
        ValueError: nothing was kept, ``extent`` is not above 0, or both ``masks`` and ``ground`` are given.
        OSError: the disk is full or cannot be written.
    """
    if not (math.isfinite(extent) and extent > 0):
        raise ValueError(f"expected a finite extent above 0, got {extent!r}")
    if masks is not None and ground is not None:
        raise ValueError("ground is for pictures without masks; leave one of them out")
    root, mask_root = Path(folder), None if masks is None else Path(masks)
    for place in (root, *([] if mask_root is None else [mask_root])):
        if not place.is_dir():
            raise FileNotFoundError(f"expected a folder at {place}, found none")
    ledger_before = Ledger()
    pairs = paired(root, mask_root, ledger_before)
    pictures = pairs.pictures
    labels = labels_of(root, pictures, category)
    categories = {label: name for name, label in labels.items()}
    writer, listed = BankWriter(out, categories, overwrite=overwrite), Include(include)
    own_rules, own_ground = rules or CutRules(), ground or PlainGround()

    def cut_outs(ledger: Ledger) -> Iterator[Foreground]:
        ledger.take(ledger_before)
        for done, path in enumerate(pictures, 1):
            name = path.relative_to(root).as_posix()
            if name in listed:
                label, mask = labels[class_of(root, path, category)], pairs.mask_of.get(path)
                photograph = _Photograph(path, name, label, mask, path in pairs.shared)
                for cut in photograph.cut_outs(mask_root is not None, own_ground, own_rules, ledger):
                    yield replace(cut, extent=extent)
            else:
                ledger.drop("image is not in `include`", name)
            if progress is not None:
                progress(done, len(pictures))
        listed.report_unmatched(ledger)

    cut_by = asdict(own_ground) if mask_root is None else {"masks": mask_root.name}
    built = {"from": "products", "folder": root.name} | cut_by | vars(own_rules)
    return build(writer, cut_outs, categories, built, drops)


@dataclass(frozen=True)
class _Photograph:
    """One picture, with its mask where it has one, which may be that of another as well."""

    path: Path
    name: str
    label: int
    mask: Path | None
    shared: bool

    def cut_outs(self, by_mask: bool, ground: PlainGround, rules: CutRules, ledger: Ledger) -> Iterator[Foreground]:
        """The objects of it; what is left out is counted."""
        try:
            pixels = self._pixels()
            alphas, way = self._by_mask(pixels) if by_mask else (_by_ground(pixels, ground), _BY_GROUND)
        except Unusable as reason:
            ledger.drop(str(reason), self.name, shown=Exhibit(self.path, self.name))
            return
        for number, alpha in enumerate(alphas, 1):
            source = self.name if len(alphas) == 1 else f"{self.name}#{number}"
            try:
                yield cut_from_image(pixels, alpha, Annotation(self.label, source), rules, soft=True)
            except Unusable as reason:
                ledger.drop(str(reason), source, shown=Exhibit(self.path, source))
            else:
                ledger.cut_by[way] += 1

    def _pixels(self) -> NDArray[np.uint8]:
        try:
            if read_rgba(self.path)[..., 3].min() < 255:
                raise Unusable("picture is cut out already by its transparency: that is source rgba")
        except NoAlphaError:
            pass
        except ValueError as error:
            raise Unusable("image cannot be read") from error
        return read_image(self.path)

    def _by_mask(self, pixels: NDArray[np.uint8]) -> tuple[list[NDArray[np.uint8]], str]:
        if self.mask is None:
            raise Unusable("picture without a mask of its name")
        if self.shared:
            raise Unusable("picture has its mask in common with another of its name")
        try:
            mask = read_mask(self.mask)
        except ValueError as error:
            raise Unusable("mask file cannot be read") from error
        if mask.shape != pixels.shape[:2]:
            raise Unusable("mask file and image differ in size")
        alpha, way = object_alpha(mask, pixels)
        return [alpha], way


def _by_ground(pixels: NDArray[np.uint8], ground: PlainGround) -> list[NDArray[np.uint8]]:
    if ((pixels == 0) | (pixels == 255)).all() and (pixels == pixels[..., :1]).all():
        raise Unusable("picture is black and white only, and so a mask: give it as such (masks)")
    return ground.alphas(pixels)
