"""Draws a view of a model with VTK, off screen: without a display, and on a CPU through Mesa."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.meshes.models import Model, ModelPart
from terse_aug.bank.meshes.views import View
from terse_aug.utils.packages import optional_module

SAMPLES_PER_SIDE = 4
"""A pixel is the mean of the square of this many samples."""

_FEATURE_ANGLE = 35.0
"""Degrees between two faces from which on their common edge is sharp."""
_MAX_PEELS = 32
_NO_OPENGL = (
    "models cannot be drawn, since there is no OpenGL for off-screen drawing: install Mesa, which needs no display and "
    "no GPU (Debian, Ubuntu: apt-get install libegl1 libgl1-mesa-dri)"
)
_CHOICE = "VTK_DEFAULT_OPENGL_WINDOW"
"""VTK's own variable for the kind of its windows."""


@lru_cache(maxsize=1)
def renderer_of(size: int) -> Renderer:
    """The renderer of this process for images of this size.

    Raises:
        MissingPackageError: VTK is not installed.
        ValueError: there is no OpenGL.
    """
    return Renderer(size)


class Renderer:
    """Draws models into images of ``size`` by ``size`` px; errors as :func:`renderer_of`."""

    def __init__(self, size: int):
        self.size, side = size, size * SAMPLES_PER_SIDE
        self._core = optional_module("vtkmodules.vtkRenderingCore", "mesh")
        optional_module("vtkmodules.vtkRenderingOpenGL2", "mesh")
        self._window = _open_window(side)
        self._scene = self._core.vtkRenderer()
        self._scene.SetBackground(0, 0, 0)
        self._scene.SetBackgroundAlpha(0)
        self._scene.AutomaticLightCreationOff()
        self._light = self._core.vtkLight()
        self._light.SetLightTypeToSceneLight()
        self._light.PositionalOff()
        self._scene.AddLight(self._light)
        self._window.AddRenderer(self._scene)
        self._shown: Model | None = None

    def description(self) -> str:
        """Library and driver: the pixels of others may differ by rounding."""
        version = optional_module("vtkmodules.vtkCommonCore", "mesh").vtkVersion.GetVTKVersion()
        self._window.Render()
        lines = self._window.ReportCapabilities().splitlines()
        drivers = [line.partition(":")[2].strip() for line in lines if line.startswith("OpenGL renderer string")]
        return ", ".join([f"VTK {version}", *drivers])

    def draw(self, model: Model, view: View) -> NDArray[np.uint8]:
        """A view of a model, whose bounding sphere touches the borders of the image.

        Returns:
            uint8 ``[size, size, 4]``, RGB and alpha, straight. Colours are means of what the model covers of a pixel,
            and alpha is how much that is.
        """
        self._show(model)
        camera = self._core.vtkCamera()
        distance = 1 / np.sin(np.radians(view.field_of_view / 2))
        camera.SetViewAngle(view.field_of_view)
        camera.SetFocalPoint(0, 0, 0)
        camera.SetPosition(*(distance * value for value in view.toward_camera))
        camera.SetViewUp(*view.camera_up)
        camera.Roll(view.roll)
        self._scene.SetActiveCamera(camera)
        self._scene.ResetCameraClippingRange()
        self._light.SetPosition(*view.toward_light)
        self._light.SetFocalPoint(0, 0, 0)
        self._light.SetIntensity(view.light_intensity)
        for actor in self._scene.GetActors():
            actor.GetProperty().SetAmbient(view.ambient)
        self._window.Render()
        return _mean_of_samples(self._pixels())

    def _show(self, model: Model) -> None:
        """Replace the model in the scene, unless it is there already."""
        if model is self._shown:
            return
        self._scene.RemoveAllViewProps()
        for part in model.parts:
            self._scene.AddActor(_actor(self._core, part))
        self._scene.SetUseDepthPeeling(not all(part.is_opaque for part in model.parts))
        self._scene.SetMaximumNumberOfPeels(_MAX_PEELS)
        self._scene.SetOcclusionRatio(0.0)
        self._shown = model

    def _pixels(self) -> NDArray[np.uint8]:
        """uint8 ``[side, side, 4]``, colours multiplied by alpha: blending over transparent black does that."""
        grab = self._core.vtkWindowToImageFilter()
        grab.SetInput(self._window)
        grab.SetInputBufferTypeToRGBA()
        grab.ReadFrontBufferOff()
        grab.ShouldRerenderOff()
        grab.Update()
        values = _numpy_support().vtk_to_numpy(grab.GetOutput().GetPointData().GetScalars())
        side = self.size * SAMPLES_PER_SIDE
        pixels: NDArray[np.uint8] = values.reshape(side, side, 4)[::-1]
        return pixels


def _mean_of_samples(samples: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Straight RGBA of the means of squares of samples with multiplied colours."""
    size = len(samples) // SAMPLES_PER_SIDE
    squares = samples.reshape(size, SAMPLES_PER_SIDE, size, SAMPLES_PER_SIDE, 4)
    sums = squares.sum(axis=(1, 3), dtype=np.uint32).astype(np.float64)
    alpha = sums[..., 3:]
    color = np.divide(255 * sums[..., :3], alpha, out=np.zeros_like(sums[..., :3]), where=alpha > 0)
    pixels = np.concatenate([color, alpha / SAMPLES_PER_SIDE**2], axis=2)
    straight: NDArray[np.uint8] = np.rint(pixels).clip(0, 255).astype(np.uint8)
    return straight


def _open_window(side: int) -> Any:
    """A window that is on no screen. VTK would end the process where it finds no OpenGL, so that is tried first."""
    opengl = optional_module("vtkmodules.vtkRenderingOpenGL2", "mesh")
    core = optional_module("vtkmodules.vtkRenderingCore", "mesh")
    if os.environ.get(_CHOICE) or not sys.platform.startswith("linux"):
        window = core.vtkRenderWindow()
    elif _can_load("libEGL.so.1"):
        window = opengl.vtkEGLRenderWindow()
    elif any(_can_load(name) for name in ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")):
        window = opengl.vtkOSOpenGLRenderWindow()
    else:
        raise ValueError(_NO_OPENGL)
    window.SetOffScreenRendering(1)
    window.SetMultiSamples(0)  # all samples are read, and none is mixed with the background
    window.SetAlphaBitPlanes(1)
    window.SetSize(side, side)
    if not window.SupportsOpenGL():
        raise ValueError(_NO_OPENGL)
    return window


def _can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _actor(core: Any, part: ModelPart) -> Any:
    """A part for VTK: corners of faces are points of their own, as a texture's seams and sharp edges need it."""
    mapper = core.vtkPolyDataMapper()
    data = _poly_data(part.vertices[part.faces.reshape(-1)], np.arange(part.faces.size).reshape(-1, 3))
    point_data, to_vtk = data.GetPointData(), _numpy_support().numpy_to_vtk
    point_data.SetNormals(to_vtk(_corner_normals(part), deep=True))
    point_data.SetScalars(to_vtk(part.colors, deep=True))
    mapper.SetInputData(data)
    actor = core.vtkActor()
    actor.SetMapper(mapper)
    actor.GetProperty().SetInterpolationToPhong()
    if part.texture is not None:
        point_data.SetTCoords(to_vtk(part.uv, deep=True))
        actor.SetTexture(_texture(core, part.texture))
    if part.is_opaque:
        actor.ForceOpaqueOn()
    else:
        actor.ForceTranslucentOn()
    return actor


def _texture(core: Any, pixels: NDArray[np.uint8]) -> Any:
    data_model = optional_module("vtkmodules.vtkCommonDataModel", "mesh")
    image = data_model.vtkImageData()
    image.SetDimensions(pixels.shape[1], pixels.shape[0], 1)
    upwards = np.ascontiguousarray(pixels[::-1]).reshape(-1, 4)  # VTK's first row is the lowest
    image.GetPointData().SetScalars(_numpy_support().numpy_to_vtk(upwards, deep=True))
    texture = core.vtkTexture()
    texture.SetInputData(image)
    texture.SetColorModeToDirectScalars()
    texture.InterpolateOn()
    texture.MipmapOn()
    texture.RepeatOn()
    return texture


def _corner_normals(part: ModelPart) -> NDArray[np.float32]:
    """float32 ``[3 f, 3]``: smooth, except at edges that are sharp. Vertices in the same place are one."""
    places = np.ascontiguousarray(part.vertices + np.float32(0)).view("V12").reshape(-1)
    _, first, number = np.unique(places, return_index=True, return_inverse=True)
    merged = _poly_data(part.vertices[first], number.reshape(-1)[part.faces])
    normals = optional_module("vtkmodules.vtkFiltersCore", "mesh").vtkPolyDataNormals()
    normals.SetInputData(merged)
    normals.ConsistencyOff()
    normals.SplittingOn()
    normals.SetFeatureAngle(_FEATURE_ANGLE)
    normals.Update()
    to_numpy = _numpy_support().vtk_to_numpy
    corners = to_numpy(normals.GetOutput().GetPolys().GetConnectivityArray())
    found: NDArray[np.float32] = to_numpy(normals.GetOutput().GetPointData().GetNormals())[corners]
    return np.ascontiguousarray(found, np.float32)


def _poly_data(points: NDArray[np.float32], faces: NDArray[np.int64]) -> Any:
    data_model = optional_module("vtkmodules.vtkCommonDataModel", "mesh")
    support = _numpy_support()
    vertices = optional_module("vtkmodules.vtkCommonCore", "mesh").vtkPoints()
    vertices.SetData(support.numpy_to_vtk(np.ascontiguousarray(points), deep=True))
    polygons = data_model.vtkCellArray()
    offsets = np.arange(0, faces.size + 1, 3, dtype=np.int64)
    corners = np.ascontiguousarray(faces, np.int64).reshape(-1)
    polygons.SetData(
        support.numpy_to_vtkIdTypeArray(offsets, deep=True), support.numpy_to_vtkIdTypeArray(corners, deep=True)
    )
    data = data_model.vtkPolyData()
    data.SetPoints(vertices)
    data.SetPolys(polygons)
    return data


def _numpy_support() -> Any:
    return optional_module("vtkmodules.util.numpy_support", "mesh")
