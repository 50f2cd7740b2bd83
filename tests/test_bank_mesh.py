"""Views of 3-D models: drawn without a display, the same in any process, with the colours of the model alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build_samples import outcome
from numpy.typing import NDArray
from PIL import Image

from terse_aug.bank import BuildReport, ExtractionRules, ForegroundBank, ViewSettings, build_from_mesh
from terse_aug.bank.meshes.models import MISSING_FILE, load_model
from terse_aug.bank.meshes.renderer import renderer_of
from terse_aug.bank.meshes.views import View
from terse_aug.cli import main

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("vtkmodules")

SIZE = 96
try:
    renderer_of(SIZE)
except ValueError as error:
    pytest.skip(str(error), allow_module_level=True)
FLAT = {"light_intensity": (0.0, 0.0), "ambient": (1.0, 1.0)}
FACES = {
    (0, 0): (250, 10, 20),
    (90, 0): (10, 240, 30),
    (180, 0): (20, 30, 230),
    (270, 0): (220, 210, 10),
    (0, 90): (15, 200, 210),
    (0, -90): (200, 25, 205),
}
"""Colours of a box's sides by azimuth and elevation of a camera that sees only that one."""


PLY_HEADER = (
    "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
    "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
)


def view(azimuth: float = 0, elevation: float = 0, **changes: float) -> View:
    """A view without shades."""
    names = {"roll": 0.0, "field_of_view": 40.0, "light_azimuth": 0.0, "light_elevation": 0.0}
    return View(azimuth, elevation, **names | {"light_intensity": 0.0, "ambient": 1.0} | changes)


def draw(path: Path, seen: View, up: str = "z") -> NDArray[np.uint8]:
    model = load_model(path, path.parent, up)
    assert not model.problem
    return renderer_of(SIZE).draw(model, seen)


def ball(path: Path, color: tuple[int, int, int] = (200, 30, 10), radius: float = 1.0) -> Path:
    sphere = trimesh.creation.icosphere(subdivisions=4, radius=radius)
    sphere.visual.face_colors = [*color, 255]
    path.parent.mkdir(parents=True, exist_ok=True)
    sphere.export(path)
    return path


def box(path: Path) -> Path:
    own = trimesh.creation.box()
    normals = {(0, 0): 1, (90, 0): 0, (180, 0): 1, (270, 0): 0, (0, 90): 2, (0, -90): 2}
    signs = {(0, 0): -1, (90, 0): 1, (180, 0): 1, (270, 0): -1, (0, 90): 1, (0, -90): -1}
    colors = np.full((12, 4), 255, np.uint8)
    for side, color in FACES.items():
        colors[own.face_normals[:, normals[side]] * signs[side] > 0.5, :3] = color
    own.visual.face_colors = colors
    path.parent.mkdir(parents=True, exist_ok=True)
    own.export(path)
    return path


def panel(path: Path, image: Image.Image, mode: str = "") -> Path:
    """An upright square with a texture, seen from azimuth 0."""
    corners = [[-1, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1]]
    own = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False)
    kinds = trimesh.visual.material
    material = kinds.PBRMaterial(baseColorTexture=image, alphaMode=mode) if mode else kinds.SimpleMaterial(image=image)
    own.visual = trimesh.visual.TextureVisuals(uv=[[0, 0], [1, 0], [1, 1], [0, 1]], material=material)
    own.export(path)
    return path


def build(meshes: Path, out: Path, jobs: int = 1, **settings: Any) -> BuildReport:
    return build_from_mesh(meshes, out, views=ViewSettings(**{"size": SIZE, "views": 2} | settings), jobs=jobs)


def test_a_sphere_is_a_disk_of_its_own_color(tmp_path: Path) -> None:
    rgba = draw(ball(tmp_path / "ball.ply"), view(20, 30))
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5 - SIZE / 2
    distance = np.hypot(rows, columns)
    assert (rgba[..., 3].astype(int).sum() / 255) == pytest.approx(np.pi * (SIZE / 2) ** 2, rel=0.005)
    assert (rgba[distance < SIZE / 2 - 1.5, 3] == 255).all()
    assert (rgba[distance > SIZE / 2 + 1, 3] == 0).all()
    assert len(np.unique(rgba[..., 3])) > 8, "the edge is soft"
    assert np.ptp(rgba[rgba[..., 3] > 0][:, :3].astype(int) - (200, 30, 10)) == 0, "nothing of a background"


def test_every_side_of_a_box_has_its_color(tmp_path: Path) -> None:
    path = box(tmp_path / "box.ply")
    for side, color in FACES.items():
        rgba = draw(path, view(*side))
        assert (rgba[rgba[..., 3] > 0][:, :3] == color).all(), side
    (azimuth, _), front = next(iter(FACES.items()))
    assert (draw(path, view(azimuth), "y")[SIZE // 2, SIZE // 2, :3] == FACES[0, 90]).all(), "glTF's front"
    corner = draw(path, view(0, 0, roll=45))
    assert corner[SIZE // 2, SIZE // 2, :3].tolist() == list(front)
    assert (corner[..., 3] > 0).any(1).sum() > 1.3 * (draw(path, view())[..., 3] > 0).any(1).sum()


def test_light_comes_from_its_direction(tmp_path: Path) -> None:
    path = ball(tmp_path / "ball.ply", (200, 200, 200))
    shades = {"ambient": 0.25, "light_intensity": 0.5, "field_of_view": 1.0}
    lit = draw(path, view(130, light_azimuth=90, **shades)).astype(int)
    rightmost = (SIZE - 3.5 - SIZE / 2) / (SIZE / 2)
    assert lit[SIZE // 2, 3, 0] == pytest.approx(50, abs=1), "ambient alone"
    assert lit[SIZE // 2, -4, 0] == pytest.approx(50 + 100 * rightmost, abs=3), "by the cosine of the angle"
    above = draw(path, view(130, light_elevation=90, **shades)).astype(int)
    np.testing.assert_allclose(above[3:-3, SIZE // 2, 0], lit[SIZE // 2, -4:2:-1, 0], atol=3)


def test_textures_are_upright_and_transparent_where_the_model_says_so(tmp_path: Path) -> None:
    corners = np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 250, 0]]], np.uint8)
    image = Image.fromarray(corners.repeat(16, 0).repeat(16, 1))
    rgba = draw(panel(tmp_path / "panel.obj", image), view())
    quarter = rgba[[SIZE // 3, 2 * SIZE // 3]][:, [SIZE // 3, 2 * SIZE // 3]]
    np.testing.assert_array_equal(quarter, np.dstack([corners, np.full((2, 2), 255)]))
    glass = Image.new("RGBA", (8, 8), (100, 200, 50, 128))
    for mode, alpha in (("BLEND", 128), ("OPAQUE", 255)):
        middle = draw(panel(tmp_path / f"{mode}.glb", glass, mode), view())[SIZE // 2, SIZE // 2].astype(int)
        assert np.abs(middle - (100, 200, 50, alpha)).max() <= 1, mode
    assert not draw(panel(tmp_path / "mask.glb", Image.new("RGBA", (8, 8), (9, 9, 9, 90)), "MASK"), view()).any()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    box(folder / "block/red/brick.ply")
    ball(folder / "pearl.ply")
    return folder


@pytest.fixture(scope="module")
def whole(models: Path) -> dict[str, Any]:
    return outcome(build(models, models / "whole.bank", views=10))


def test_classes_are_folders_or_the_names_of_files(models: Path, whole: dict[str, Any]) -> None:
    assert whole["kept"] == {"block": 10, "pearl": 10}
    assert whole["images"] == 20
    assert whole["mask_sources"] == {"rendered": 20}
    with ForegroundBank.open(models / "whole.bank") as bank:
        assert bank.categories == {1: "block", 2: "pearl"}
        assert bank[10].source.startswith("pearl.ply view 0: azimuth ")
        assert bank[10].relative_size == pytest.approx(0.3), "as the sphere, whatever is seen of a model"
        assert {own.relative_size < 0.3 for own in list(bank)[:10]} == {True}


def test_a_stopped_build_is_resumed_with_the_same_views_in_any_number_of_processes(
    models: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 9:
            raise KeyboardInterrupt

    settings = ViewSettings(size=SIZE, views=10)
    with pytest.raises(KeyboardInterrupt, match="8 of 20 views are done and kept"):
        build_from_mesh(models, tmp_path / "out.bank", views=settings, jobs=1, progress=stop)
    report = build(models, tmp_path / "out.bank", 2, views=10)
    assert report.resumed == 8
    assert outcome(report) == whole


def test_a_view_depends_on_seed_model_and_number_alone(models: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    ball(tmp_path / "models/another.ply")
    for path in (models / "block/red/brick.ply", models / "pearl.ply"):
        place = tmp_path / "models" / path.relative_to(models)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    known = {source: pixels for source, *_, pixels in whole["pixels"]}
    report = build(tmp_path / "models", tmp_path / "more.bank", views=3)
    found = {source: pixels for source, *_, pixels in outcome(report)["pixels"] if "another" not in source}
    assert len(found) == 6
    assert found.items() <= known.items()
    other = build(tmp_path / "models", tmp_path / "other.bank", views=3, seed=1)
    assert not {source for source, *_ in outcome(other)["pixels"]} & known.keys()
    assert len({source.partition("view")[2] for source in known}) == 20, "models differ, too"


def test_what_cannot_be_drawn_is_counted_with_its_reason(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    ball(folder / "good.ply")
    points = "v 0 0 {z}\nv 1 0 0\nv 0 1 0\n"
    texts = {
        "nan.obj": points.format(z="nan") + "f 1 2 3\n",
        "points.obj": points.format(z=0),
        "empty.obj": "",
        "dot.obj": "v 1 2 3\nv 1 2 3\nv 1 2 3\nf 1 2 3\n",
        "damaged.ply": "ply and nothing else",
        "damaged.glb": "no model",
        "index.ply": PLY_HEADER + "0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n",
        "tool.fbx": "",
        "notes.txt": "",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    report = build(folder, tmp_path / "out.bank")
    assert report.kept == {"good": 2}
    assert report.rejected == {
        "vertices that are no finite numbers": 1,
        "model without faces": 2,
        "model without extent": 1,
        "model cannot be read": 2,
        "faces of vertices that the model does not have": 1,
        "model of a format that is not read; convert it to GLB": 1,
    }
    assert report.examples["model cannot be read"][0].startswith("damaged.glb: ")
    assert sum(report.kept.values()) == len(ForegroundBank.open(tmp_path / "out.bank"))


@pytest.mark.parametrize("scale", [1e200, 1e-30])
def test_the_scale_of_a_model_does_not_matter(scale: float, tmp_path: Path) -> None:
    text = "v 0 0 0\nv {s} 0 0\nv 0 0 {s}\nf 1 2 3\n"
    (tmp_path / "one.obj").write_text(text.format(s=1))
    (tmp_path / "scaled.obj").write_text(text.format(s=scale))
    one, scaled = (draw(tmp_path / name, view()).astype(int) for name in ("one.obj", "scaled.obj"))
    assert one[..., 3].any()
    assert np.abs(one - scaled).max() <= 16, "one sample of a pixel"


def test_a_missing_texture_is_counted_and_none_is_read_from_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    image = Image.new("RGB", (8, 8), (0, 250, 0))
    panel(folder / "sign.obj", image)
    texture = next(folder.glob("*.png"))
    assert load_model(folder / "sign.obj", folder, "z").notes == set()
    texture.rename(tmp_path / texture.name)
    material = next(folder.glob("*.mtl"))
    for name in (texture.name, f"../{texture.name}"):
        material.write_text(f"newmtl material_0\nKd 1 0 0\nmap_Kd {name}\n")
        model = load_model(folder / "sign.obj", folder, "z")
        assert model.notes == {MISSING_FILE}
        assert model.parts[0].texture is None
    assert build(folder, tmp_path / "out.bank").repaired == {MISSING_FILE: 1}
    (folder / texture.name).write_bytes(b"no image")
    assert load_model(folder / "sign.obj", folder, "z").notes == {MISSING_FILE}
    image.save(folder / texture.name)
    model = load_model(folder / "sign.obj", folder, "z")
    assert model.notes == set(), "read anew, since a file of it has changed"
    assert {path.name for path in model.files} == {"sign.obj", material.name, texture.name}


def test_the_command_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["bank", "build", "mesh", "--meshes", str(tmp_path), "--out", str(tmp_path / "out.bank")]
    assert main(command) == 2
    assert "expected models (.obj, " in capsys.readouterr().err
    ball(tmp_path / "ball.ply")
    assert main([*command, "--elevation", "50", "20"]) == 2
    assert "elevation as lowest and highest value" in capsys.readouterr().err
    assert main([*command, "--views", "3", "--size", "40", "--min-side", "20"]) == 0
    assert "3  rendered" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "trimesh", None)
    assert main([*command, "--overwrite"]) == 2
    message = capsys.readouterr().err
    assert "pip install terse-aug[mesh]" in message
    assert message.count("\n") == 1


def test_rules_apply_to_views(tmp_path: Path) -> None:
    ball(tmp_path / "ball.ply")
    settings = ViewSettings(size=SIZE, views=2, **FLAT)
    rules = ExtractionRules(max_side=32)
    build_from_mesh(tmp_path, tmp_path / "out.bank", views=settings, rules=rules, jobs=1)
    with ForegroundBank.open(tmp_path / "out.bank") as bank:
        assert [max(own.size) for own in bank] == [32, 32]
        assert [own.relative_size for own in bank] == pytest.approx([0.3, 0.3])
    rules = ExtractionRules(min_area=100000)
    with pytest.raises(ValueError, match="fewer than 100000 px visible"):
        build_from_mesh(tmp_path, tmp_path / "none.bank", views=settings, rules=rules, jobs=1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have OpenGL of their own")
def test_without_opengl_the_command_ends_in_one_line_and_not_in_a_crash(tmp_path: Path) -> None:
    ball(tmp_path / "ball.ply")
    script = (
        "import sys, terse_aug.bank; assert not {'trimesh', 'vtkmodules', 'torch'} & set(sys.modules);"
        "from terse_aug.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [
        sys.executable,
        "-c",
        script,
        "bank",
        "build",
        "mesh",
        "--meshes",
        tmp_path,
        "--out",
        tmp_path / "o.bank",
    ]
    hidden = {"__EGL_VENDOR_LIBRARY_FILENAMES": str(tmp_path / "none.json"), "VTK_DEFAULT_OPENGL_WINDOW": ""}
    run = subprocess.run(command, env={**os.environ, **hidden}, capture_output=True, text=True, check=False)
    assert run.returncode == 2, run.stderr
    assert "install Mesa" in run.stderr.splitlines()[-1]
