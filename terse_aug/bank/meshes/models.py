"""Reads 3-D models with trimesh: triangles with their colours and textures, scaled to the unit sphere, z upright."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from terse_aug.bank.extract import RejectedObject
from terse_aug.bank.inputs.image_endings import is_image_name
from terse_aug.bank.inputs.images import BROKEN_FILE
from terse_aug.bank.inputs.repair import Repairs
from terse_aug.utils.packages import optional_module

MODEL_ENDINGS = (".obj", ".glb", ".gltf", ".ply", ".stl", ".off")
OTHER_MODEL_ENDINGS = (
    ".3ds",
    ".blend",
    ".dae",
    ".fbx",
    ".step",
    ".stp",
    ".usd",
    ".usda",
    ".usdc",
    ".usdz",
    ".wrl",
    ".x3d",
)
"""Of models that are not read."""
MISSING_FILE = "file that a model names (texture, material) is missing or cannot be read; drawn without it"
"""A repair."""

_Y_UP_ENDINGS = (".obj", ".glb", ".gltf")
_PLAIN_GREY = (190, 190, 190, 255)
_MAX_TEXTURE = 4096


@dataclass(frozen=True)
class ModelPart:
    """Triangles of one material.

    Attributes:
        vertices: float32 ``[v, 3]``, within the unit sphere.
        faces: int64 ``[f, 3]``, numbers of vertices.
        colors: uint8 ``[3 f, 4]``, RGB and opacity of the corners of all faces.
        uv: float32 ``[3 f, 2]``, where the corners are in the texture; 0, 0 is its lower left corner.
        texture: uint8 ``[h, w, 4]``, which the colours are multiplied by.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int64]
    colors: NDArray[np.uint8]
    uv: NDArray[np.float32] | None = None
    texture: NDArray[np.uint8] | None = None

    @property
    def is_opaque(self) -> bool:
        """Whether nothing behind it can be seen."""
        return bool(self.colors[:, 3].min() == 255 and (self.texture is None or self.texture[..., 3].min() == 255))


@dataclass(frozen=True)
class Model:
    """A model, or why it cannot be used.

    Attributes:
        parts: its triangles.
        files: all that it was read from, also those that are missing.
        notes: what was repaired.
        problem: the reason to reject it, and what is particular to this one; empty for a good model.
    """

    parts: tuple[ModelPart, ...]
    files: tuple[Path, ...]
    notes: frozenset[str] = frozenset()
    problem: tuple[str, ...] = ()


@dataclass
class _LastModel:
    """The model that this process used last: its views are drawn one after the other."""

    key: Any = None
    status: list[Any] = field(default_factory=list)
    model: Model | None = None


_last = _LastModel()


def load_model(path: Path, root: Path, up: str) -> Model:
    """A model, read anew only if it is not the last one, or one of its files was changed.

    Args:
        path: file of the model.
        root: folder that textures and materials have to lie in.
        up: its upright axis, ``"y"``, ``"z"`` or ``"auto"``.

    Raises:
        MissingPackageError: trimesh is not installed.
    """
    key = (path, root, up)
    if _last.model is None or _last.key != key or _last.status != _status(_last.model.files):
        _last.model = None  # two large models need not be in memory
        model = _read(path, root, up)
        _last.key, _last.status, _last.model = key, _status(model.files), model
    return _last.model


def _status(files: Sequence[Path]) -> list[Any]:
    found: list[Any] = []
    for path in files:
        try:
            status = path.stat()
            found.append((status.st_size, status.st_mtime_ns))
        except (OSError, ValueError):
            found.append(None)
    return found


def _read(path: Path, root: Path, up: str) -> Model:
    trimesh = optional_module("trimesh", "mesh")
    files, notes = [path], set[str]()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's about odd numbers, which are looked at below
            scene = trimesh.load_scene(path, resolver=_resolver(trimesh, path, root, files, notes), process=False)
            meshes = [own for own in scene.dump() if isinstance(own, trimesh.Trimesh) and len(own.faces)]
            is_y_up = up == "y" or (up == "auto" and path.suffix.lower() in _Y_UP_ENDINGS)
            parts = _parts(meshes, is_y_up)
    except RejectedObject as reason:
        return Model((), tuple(files), problem=(str(reason),))
    except MemoryError:
        raise
    except Exception as error:  # trimesh raises whatever its parsers meet in a damaged file
        return Model((), tuple(files), problem=("model cannot be read", f"{type(error).__name__}: {error}"))
    return Model(parts, tuple(files), frozenset(notes))


def _resolver(trimesh: Any, path: Path, root: Path, files: list[Path], notes: Repairs) -> Any:
    """Reads the files that a model names, from ``root`` only, and lists them."""
    place = root.resolve()

    class Resolver(trimesh.resolvers.FilePathResolver):  # type: ignore[misc]  # trimesh is imported at run time
        def get(self, name: str) -> bytes:
            plain = name.strip().replace("\\", "/")
            # Names from another computer may be absolute there.
            for own in (path.parent / plain, path.parent / PurePosixPath(plain).name):
                if own.resolve().is_relative_to(place):
                    files.append(own)
                    if own.is_file():
                        return _checked(own)
            notes.add(MISSING_FILE)
            raise FileNotFoundError(name)

        def __getitem__(self, name: str) -> bytes:
            return self.get(name)

    def _checked(file: Path) -> bytes:
        content = file.read_bytes()
        if is_image_name(file):
            try:
                with Image.open(io.BytesIO(content)) as image:
                    image.load()
            except BROKEN_FILE:
                notes.add(MISSING_FILE)
        return content

    return Resolver(str(path))


def _parts(meshes: Sequence[Any], is_y_up: bool) -> tuple[ModelPart, ...]:
    """The triangles of all meshes of a model, scaled to the unit sphere."""
    if not meshes:
        raise RejectedObject("model without faces")
    faces = [np.asarray(mesh.faces, np.int64) for mesh in meshes]
    for mesh, own in zip(meshes, faces, strict=True):
        if own.min() < 0 or own.max() >= len(mesh.vertices):
            raise RejectedObject("faces of vertices that the model does not have")
    used = [np.unique(own, return_inverse=True) for own in faces]
    vertices = [np.asarray(mesh.vertices, np.float64)[kept] for mesh, (kept, _) in zip(meshes, used, strict=True)]
    every = np.concatenate(vertices)
    if not np.isfinite(every).all():
        raise RejectedObject("vertices that are no finite numbers")
    largest = np.abs(every).max() or 1.0  # dividing by it first keeps squares of huge numbers finite
    every = every / largest
    middle = (every.min(0) + every.max(0)) / 2
    radius = np.linalg.norm(every - middle, axis=1).max()
    if not radius > np.finfo(np.float32).eps:
        raise RejectedObject("model without extent")
    parts = []
    for mesh, own, (_, inverse), points in zip(meshes, faces, used, vertices, strict=True):
        points = (points / largest - middle) / radius
        if is_y_up:
            points = np.stack([points[:, 0], -points[:, 2], points[:, 1]], axis=1)
        kept = np.asarray(inverse, np.int64).reshape(own.shape)
        parts.append(ModelPart(points.astype(np.float32), kept, *_appearance(mesh, own)))
    return tuple(parts)


def _appearance(
    mesh: Any, faces: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None, NDArray[np.uint8] | None]:
    """Colours, places in the texture, and texture."""
    corners, visual = faces.reshape(-1), mesh.visual
    colors = np.full((len(corners), 4), _PLAIN_GREY, np.uint8)
    if visual.kind == "vertex":
        colors[:, :3] = np.asarray(visual.vertex_colors)[corners, :3]
    elif visual.kind == "face":
        colors[:, :3] = np.repeat(np.asarray(visual.face_colors)[:, :3], 3, axis=0)
    if visual.kind != "texture":
        return colors, None, None
    image, factor, transparency, cutoff = _material(visual.material)
    colors[:] = factor
    if (own := visual.vertex_attributes.get("color")) is not None and len(own) == len(mesh.vertices):
        shades = np.asarray(own)[:, :3]
        shades = shades / 255 if shades.dtype.kind in "ui" else shades
        colors[:, :3] = np.rint(colors[:, :3] * shades[corners].clip(0, 1))
    uv = None if visual.uv is None else np.nan_to_num(np.asarray(visual.uv, np.float32))
    texture = None
    if image is not None and uv is not None and uv.shape == (len(mesh.vertices), 2):
        image.thumbnail((_MAX_TEXTURE, _MAX_TEXTURE))
        texture = np.array(image.convert("RGBA"))
    for alpha in (colors[:, 3], *([] if texture is None else [texture[..., 3]])):
        if transparency == "MASK":
            alpha[:] = np.where(alpha >= 255 * cutoff, 255, 0)
        elif transparency != "BLEND":
            alpha[:] = 255
    return colors, None if texture is None or uv is None else uv[corners], texture


def _material(material: Any) -> tuple[Image.Image | None, NDArray[np.uint8], str, float]:
    """Texture, colour, and how it is transparent: as glTF's ``alphaMode`` and ``alphaCutoff``; other files do not say.

    The diffuse colour of an OBJ's material has no effect beside a texture, as in most programs.
    """
    is_pbr = hasattr(material, "baseColorTexture")
    image = material.baseColorTexture if is_pbr else getattr(material, "image", None)
    image = None if image is None else image.copy()
    if is_pbr:
        color = material.baseColorFactor
        cutoff = 0.5 if material.alphaCutoff is None else float(material.alphaCutoff)
        mode = str(material.alphaMode or "OPAQUE")
    else:
        color, cutoff, mode = (material.main_color if image is None else None), 0.5, "OPAQUE"
    whole = np.full(4, 255, np.uint8)
    if color is not None:
        whole[: len(color)] = np.asarray(color, np.uint8)[:4]
    return image, whole, mode, cutoff
