"""Views of 3-D models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from terse_aug.bank.build.chunks import Source
from terse_aug.bank.build.pipeline import BuildOptions
from terse_aug.bank.build.report import BuildLog, BuildReport
from terse_aug.bank.extract import ExtractionRules, RejectedObject, finish_foreground, remove_faint_alpha, tight_box
from terse_aug.bank.inputs.folders import check_folders, check_relative_size, visible_files
from terse_aug.bank.inputs.image_list import ImageList
from terse_aug.bank.meshes.models import MODEL_ENDINGS, OTHER_MODEL_ENDINGS, load_model
from terse_aug.bank.meshes.renderer import renderer_of
from terse_aug.bank.meshes.views import ViewSettings, draw_view
from terse_aug.bank.readers.several_parts import Paths, as_path, takes_several
from terse_aug.structures.foreground import Foreground
from terse_aug.utils.packages import optional_module

_RENDERED = "rendered"


@takes_several()
def build_from_mesh(
    meshes: Paths,
    out: str | Path,
    *,
    views: ViewSettings | None = None,
    relative_size: float = 0.3,
    **options: Any,
) -> BuildReport:
    """Build a bank from views of 3-D models (OBJ, glTF, PLY, STL, OFF).

    Models in a subfolder, at any depth, are of the class that it is named after; the class of a model in no subfolder
    is its own name. Labels are 1, 2, ... in the order of the class names. A foreground is a function of the seed, the
    name of the model (its path below ``meshes``) and the number of the view, and its source names them all. An entry
    of ``image_list`` is the name of a model. Settings of ``rules`` that need an image have no effect.

    Args:
        meshes: folder of the models; its subfolders are classes.
        out: the bank to write.
        views: how many views, from where, and how they are lit.
        relative_size: diameter of a model's bounding sphere over the square root of its background's area, which a
            model does not show.
        options: see :class:`BuildOptions`.

    Raises:
        FileNotFoundError: ``meshes`` does not exist.
        ValueError: there is no model, ``relative_size`` is not above 0, trimesh or VTK is not installed, or there is
            no OpenGL.
        FileExistsError, ValueError, OSError: as :class:`BuildOptions`.
    """
    settings = BuildOptions.checked(out, options)
    check_relative_size(relative_size)
    views = views or ViewSettings()
    root = as_path(meshes)
    check_folders(root, content="models")
    log = BuildLog()
    models, categories = _find_models(root, ImageList.of(settings.image_list), log)
    if not models and not settings.only_planned:
        others = f"; {others} are of formats that are not read" if (others := log.rejected.counts[_NOT_READ]) else ""
        raise ValueError(f"expected models ({', '.join(MODEL_ENDINGS)}) in {root}, found none{others}")
    # Before any work: without these packages, or OpenGL, nothing can be drawn.
    trimesh = optional_module("trimesh", "mesh")
    drawn_by = f"{renderer_of(views.size).description()}, trimesh {trimesh.__version__}"
    items = [(path, name, label, number) for path, name, label in models for number in range(views.views)]
    record = {"from": "mesh", "folder": root.name, **asdict(views), **vars(settings.rules)}
    record |= {"relative_size": relative_size, "drawn_by": drawn_by}
    source = Source(items, _Extractor(root, views, relative_size, settings.rules), record, log)
    return settings.build(out, source, record, categories, counted="views")


_NOT_READ = "model of a format that is not read; convert it to GLB"


def _find_models(
    root: Path, image_list: ImageList, log: BuildLog
) -> tuple[list[tuple[Path, str, int]], dict[int, str]]:
    """Path, name and label of the models on the list, and names of the labels of all."""
    class_of: dict[Path, str] = {}
    for path in visible_files(root):
        relative = path.relative_to(root)
        if path.suffix.lower() in MODEL_ENDINGS:
            class_of[path] = relative.parts[0] if len(relative.parts) > 1 else path.stem
        elif path.suffix.lower() in OTHER_MODEL_ENDINGS:
            log.drop(_NOT_READ, relative.as_posix())
    label_of = {name: label for label, name in enumerate(sorted(set(class_of.values())), 1)}
    models = []
    for path, category in class_of.items():
        name = path.relative_to(root).as_posix()
        if name in image_list:
            models.append((path, name, label_of[category]))
        else:
            log.drop("model is not in `image_list`", name)
    image_list.report_unmatched(log)
    return models, {label: name for name, label in label_of.items()}


_Item = tuple[Path, str, int, int]
"""Path, name and label of a model, and number of a view."""


@dataclass(frozen=True)
class _Extractor:
    """Draws one view after the other."""

    root: Path
    views: ViewSettings
    relative_size: float
    rules: ExtractionRules

    def files(self, item: _Item) -> tuple[Path, ...]:
        """The model, and all files that it names."""
        return load_model(item[0], self.root, self.views.up).files

    def objects(self, item: _Item, log: BuildLog) -> Iterator[Foreground]:
        """The foreground of a view. What is wrong with a model is counted once, with its first view."""
        path, name, label, number = item
        model = load_model(path, self.root, self.views.up)
        if number == 0:
            log.repair(model.notes, name)
            if model.problem:
                log.drop(model.problem[0], ": ".join((name, *model.problem[1:])))
        if model.problem:
            return
        view = draw_view(self.views, name, number)
        source = f"{name} view {number}: {view.text()}"
        try:
            rgba = renderer_of(self.views.size).draw(model, view)
            alpha = remove_faint_alpha(rgba[..., 3])
            tight = tight_box(alpha)
            if tight is None:
                raise RejectedObject("nothing of a model is visible")
            left, top, width, height = tight
            visible = np.concatenate([rgba[..., :3], alpha[..., None]], axis=2)
            crop = np.ascontiguousarray(visible[top : top + height, left : left + width])
            relative_size = self.relative_size * max(width, height) / self.views.size
            foreground = finish_foreground(Foreground(crop, label, source, relative_size), self.rules)
        except RejectedObject as reason:
            log.drop(str(reason), source)
        else:
            log.mask_sources[_RENDERED] += 1
            yield foreground
