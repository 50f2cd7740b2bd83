"""Sources read several folders or files into one bank: what has one name in two of them is kept apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated_samples import (
    AnnotatedImage,
    as_labelme,
    as_panoptic,
    as_via,
    as_voc,
    as_yolo,
    make_sample,
    true_masks,
)
from bank_samples import assert_equal
from build_samples import build_many, keys_of, make_many, outcome
from PIL import Image
from test_bank_cutters import RedCutter
from test_bank_resume import interrupt

from terse_aug.bank import (
    ExtractionRules,
    ForegroundBank,
    ViewSettings,
    build_from_coco,
    build_from_rgba,
    build_from_voc,
)
from terse_aug.bank.analysis import bank_statistics, render_report
from terse_aug.bank.build.parts import EMPTY_PART, OTHER_LABEL
from terse_aug.bank.readers import READERS
from terse_aug.bank.readers.annotated_images import AnnotationOptions, read_annotations
from terse_aug.cli import main
from terse_aug.structures.foreground import Foreground

SQUARE = [20, 10, 70, 10, 70, 60, 20, 60]
Paths = dict[str, Any]


def sample(root: Path, seed: int) -> AnnotatedImage:
    """The image of ``make_sample`` under the same name, with other pixels for each seed."""
    made = make_sample(root)
    noise = np.random.default_rng(seed).integers(0, 90, made.pixels.shape, dtype=np.uint8)
    made.pixels = np.maximum(made.pixels, noise)
    Image.fromarray(made.pixels).save(made.images / "scene.png")
    return made


def save_mask(path: Path, mask: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return path


def coco(own: AnnotatedImage, categories: dict[int, str] | None = None) -> Paths:
    names = categories or {1: "cat"}
    entries = [
        {"id": label, "image_id": 1, "category_id": label, "segmentation": [SQUARE], "iscrowd": 0} for label in names
    ]
    image = {"id": 1, "file_name": "scene.png"}
    listed = [{"id": label, "name": name} for label, name in names.items()]
    content = {"images": [image], "annotations": entries, "categories": listed}
    return {"annotations": own.write_json("coco.json", content), "images": own.images}


def yolo(own: AnnotatedImage) -> Paths:
    as_yolo(own)
    return {"images": own.images}


def panoptic(own: AnnotatedImage) -> Paths:
    annotations, masks = as_panoptic(own)
    return {"annotations": annotations, "masks": masks, "images": own.images}


def cvat(own: AnnotatedImage) -> Paths:
    points = ";".join(f"{x},{y}" for x, y in zip(SQUARE[::2], SQUARE[1::2], strict=True))
    path = own.root / "annotations.xml"
    shape = f'<polygon label="cat" points="{points}"/>'
    path.write_text(f'<annotations><image name="scene.png" width="128" height="96">{shape}</image></annotations>')
    return {"file": path, "images": own.images}


def label_studio(own: AnnotatedImage) -> Paths:
    points = [[100 * x / 128, 100 * y / 96] for x, y in zip(SQUARE[::2], SQUARE[1::2], strict=True)]
    region = {"id": "a", "original_width": 128, "original_height": 96, "type": "polygonlabels"}
    region["value"] = {"points": points, "polygonlabels": ["cat"]}
    task = {"id": 1, "data": {"image": "scene.png"}, "annotations": [{"result": [region]}]}
    return {"file": own.write_json("export.json", [task]), "images": own.images}


def sa1b(own: AnnotatedImage) -> Paths:
    content = {
        "image": {"file_name": "scene.png", "height": 96, "width": 128},
        "annotations": [{"id": 3, "segmentation": [SQUARE]}],
    }
    return {"folder": own.write_json("json/scene.json", content).parent, "images": own.images}


def masks(own: AnnotatedImage) -> Paths:
    first, second = true_masks()
    return {"images": own.images, "masks": save_mask(own.root / "masks/scene.png", first + 2 * second).parent}


def object_masks(own: AnnotatedImage) -> Paths:
    for number, mask in enumerate(true_masks()):
        save_mask(own.root / f"masks/scene/{number}.png", 255 * mask)
    return {"images": own.images, "masks": own.root / "masks"}


def rgba(own: AnnotatedImage) -> Paths:
    save_mask(own.root / "cut/cat/scene.png", np.dstack([own.pixels, 255 * true_masks()[0]]))
    return {"folder": own.root / "cut"}


def products(own: AnnotatedImage) -> Paths:
    return {"folder": own.images, "masks": save_mask(own.root / "masks/scene.png", 255 * true_masks()[0]).parent}


def mesh(own: AnnotatedImage) -> Paths:
    pytest.importorskip("vtkmodules")
    trimesh = pytest.importorskip("trimesh")
    (own.root / "models").mkdir()
    trimesh.creation.icosphere().export(own.root / "models/cat.ply")
    return {"meshes": own.root / "models", "views": ViewSettings(views=1, size=48)}


MAKERS: dict[str, Callable[[AnnotatedImage], Paths]] = {
    "coco": coco,
    "cvat": cvat,
    "label-studio": label_studio,
    "labelme": lambda own: {"folder": as_labelme(own), "images": own.images},
    "masks": masks,
    "mesh": mesh,
    "object-masks": object_masks,
    "panoptic": panoptic,
    "products": products,
    "rgba": rgba,
    "sa1b": sa1b,
    "unlabelled": lambda own: {"images": own.images, "cutter": RedCutter()},
    "via": lambda own: {"file": as_via(own), "images": own.images},
    "voc": lambda own: {"root": as_voc(own)},
    "yolo": yolo,
}


def content(path: Path) -> list[Foreground]:
    with ForegroundBank.open(path) as bank:
        return list(bank)


@pytest.mark.parametrize("source", [name for name, reader in READERS.items() if reader.options is not None])
def test_every_source_reads_two_parts_of_the_same_file_names(source: str, tmp_path: Path) -> None:
    reader = READERS[source]
    options: dict[str, Any] = {"jobs": 1} | ({"boxes": "box"} if reader.options is AnnotationOptions else {})
    parts = [MAKERS[source](sample(tmp_path / name, seed)) for seed, name in enumerate(("old/set", "new/set"))]
    single = []
    for number, part in enumerate(parts):
        reader.build(**part, out=tmp_path / f"{number}.bank", **options)
        single.append(content(tmp_path / f"{number}.bank"))
    shared = {name: parts[0][name] for name in ("cutter", "views") if name in parts[0]}
    lists = {name: [part[name] for part in parts] for name in parts[0].keys() - shared.keys()}
    report = reader.build(**lists, **shared, out=tmp_path / "both.bank", **options)
    assert report.images == 2
    with ForegroundBank.open(report.path) as bank:
        found, built = list(bank), bank.info()["built"]
    assert len({own.source for own in found}) == len(found)
    assert [own.source.split("/")[0] for own in found] == ["old"] * len(single[0]) + ["new"] * len(single[1])
    assert [part["image_count"] for part in built["parts"]] == [1, 1]
    for joined, alone in zip(found, single[0] + single[1], strict=True):
        assert joined.source.endswith(f"/{alone.source}")
        assert_equal(joined, Foreground(**vars(alone) | {"source": joined.source}))


def test_labels_follow_from_the_names_of_all_parts(tmp_path: Path) -> None:
    roots = [as_voc(sample(tmp_path / "a", 0)), as_voc(sample(tmp_path / "b", 1), cat="bird")]
    build_from_voc(roots, tmp_path / "out.bank")
    with ForegroundBank.open(tmp_path / "out.bank") as bank:
        assert bank.categories == {1: "bird", 2: "cat", 3: "dog"}
        assert [(own.source, bank.categories[own.label]) for own in bank] == [
            ("a/scene.png#1", "cat"),
            ("a/scene.png#2", "dog"),
            ("b/scene.png#1", "bird"),
            ("b/scene.png#2", "dog"),
        ]
    build_from_voc(roots, tmp_path / "names.bank", names=["dog", "cat", "bird"])
    with ForegroundBank.open(tmp_path / "names.bank") as bank:
        assert bank.categories == {1: "dog", 2: "cat", 3: "bird"}


def test_labels_that_are_numbers_in_the_data_are_kept_as_far_as_they_agree(tmp_path: Path) -> None:
    first = coco(sample(tmp_path / "a", 0), {3: "car", 7: "cup"})
    second = coco(sample(tmp_path / "b", 1), {3: "bus", 5: "car", 8: "dog"})
    lists = {name: [first[name], second[name]] for name in first}
    report = build_from_coco(**lists, out=tmp_path / "out.bank")
    with ForegroundBank.open(tmp_path / "out.bank") as bank:
        assert bank.categories == {3: "car", 7: "cup", 8: "dog", 9: "bus"}
        assert [bank.categories[label] for label in bank.labels] == ["car", "cup", "bus", "car", "dog"]
    assert report.repaired == {OTHER_LABEL: 2}
    assert report.examples[OTHER_LABEL] == ["b: bus, 9 instead of 3", "b: car, 3 instead of 5"]


def test_a_category_may_be_missing_in_some_parts(tmp_path: Path) -> None:
    roots = [as_voc(sample(tmp_path / "a", 0)), as_voc(sample(tmp_path / "b", 1), cat="bird")]
    report = build_from_voc(roots, tmp_path / "out.bank", categories=["bird"])
    assert report.kept == {"bird": 1}
    assert report.rejected == {"category is not in `categories`": 3, EMPTY_PART: 1}
    with pytest.raises(ValueError, match="no such categories: cow; none of a, b has them"):
        build_from_voc(roots, tmp_path / "b.bank", categories=["bird", "cow"])


def test_an_image_list_is_for_all_parts_together(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for seed, folder in enumerate(folders):
        for name in ("one", "two"):
            mask = np.full((20, 20, 1), 255, np.uint8)
            mask[0, 0] = 0
            noise = np.random.default_rng(seed).integers(0, 255, (20, 20, 3), dtype=np.uint8)
            save_mask(folder / f"{name}{seed if name == 'two' else ''}.png", np.dstack([noise, mask]))
    names = iter(["b/one", "two0", "b/two0", "three"])
    report = build_from_rgba(folders, tmp_path / "out.bank", image_list=names)
    assert [own.source for own in content(tmp_path / "out.bank")] == ["a/two0.png", "b/one.png"]
    unmatched = "listed in `image_list`, but there is no such image"
    assert (report.rejected[unmatched], report.examples[unmatched]) == (2, ["b/two0", "three"])
    assert report.rejected["image is not in `image_list`"] == 2


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets of many images with the same names, of 56 and 40."""
    folder = tmp_path_factory.mktemp("twice")
    make_many(folder / "a")
    make_many(folder / "b", 40)
    return folder


def build_both(folder: Path, out: Path, **changes: Any) -> Any:
    settings: dict[str, Any] = {"boxes": "ellipse", "jobs": 1} | changes
    roots = [folder / "a", folder / "b"]
    return build_from_coco([root / "many.json" for root in roots], [root / "images" for root in roots], out, **settings)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_build_of_several_parts_resumes(twice: Path, tmp_path: Path, jobs: int) -> None:
    whole = build_both(twice, tmp_path / "whole.bank", rejected_sheet=tmp_path / "whole.png")
    out = tmp_path / "out.bank"
    interrupt(lambda: build_both(twice, out), 9, "72 of 96 images are done and kept")
    report = build_both(twice, out, jobs=jobs, rejected_sheet=tmp_path / "resumed.png")
    assert report.resumed == 72
    assert outcome(report) == outcome(whole)
    assert keys_of(out) == keys_of(whole.path)
    assert (tmp_path / "resumed.png").read_bytes() == (tmp_path / "whole.png").read_bytes()
    single = [build_many(twice / name, tmp_path / f"{name}.bank") for name in ("a", "b")]
    for counts in ("kept", "rejected", "repaired", "mask_sources"):
        summed = {key: sum(getattr(own, counts).get(key, 0) for own in single) for key in getattr(single[0], counts)}
        assert getattr(whole, counts) == summed


def test_a_sheet_shows_the_image_of_the_right_part(tmp_path: Path) -> None:
    roots = []
    for name, color in (("a", (250, 0, 0)), ("b", (0, 0, 250))):
        own = make_sample(tmp_path / name)
        own.pixels[:] = color
        own.pixels[10:60, 20:70] = 200  # the object that is kept
        roots.append(as_voc(own))
    for parts in (roots, roots[::-1]):
        rules = ExtractionRules(min_area=2000)
        sheet = tmp_path / "sheet.png"
        build_from_voc(parts, tmp_path / "out.bank", rules=rules, rejected_sheet=sheet, overwrite=True)
        pixels = np.asarray(Image.open(sheet).convert("RGB"))
        colors = [(pixels == color).all(-1).sum() for color in ((250, 0, 0), (0, 0, 250))]
        assert min(colors) > 1000, "both photographs are drawn"


def test_the_report_shows_copies_between_parts(tmp_path: Path) -> None:
    roots = [as_voc(sample(tmp_path / "a", 0)), as_voc(sample(tmp_path / "b", 0))]
    build_from_voc(roots, tmp_path / "out.bank")
    with ForegroundBank.open(tmp_path / "out.bank") as bank:
        statistics = bank_statistics(bank)
    assert sorted(group.tolist() for group in statistics.near_duplicates.groups) == [[0, 2], [1, 3]]
    page = render_report(statistics)
    assert "a/scene.png#1, b/scene.png#1" in page
    assert "image_count 1, name a; image_count 1, name b" in page


def test_parts_that_would_be_used_twice_are_refused(tmp_path: Path) -> None:
    root, out = as_voc(sample(tmp_path / "a", 0)), tmp_path / "out.bank"
    (tmp_path / "link").symlink_to(root)
    for other in (root, tmp_path / "link"):
        with pytest.raises(ValueError, match="is given twice"):
            build_from_voc([root, other], out)
    with pytest.raises(ValueError, match=r"voc lies in .*a, so its files would be used twice"):
        build_from_voc([tmp_path / "a", root], out)
    with pytest.raises(ValueError, match="got 2 of root, 3 of images"):
        build_from_voc([root, root], out, images=[root] * 3)
    with pytest.raises(ValueError, match="got 0 of root"):
        build_from_voc([], out)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build_from_voc([root, tmp_path / "nowhere"], out)
    with pytest.raises(ValueError, match="expected one folder of labelled images, got 2: a, b"):
        read_annotations(build_from_voc, root=[tmp_path / "a", tmp_path / "b"])
    assert not out.exists()


def test_one_folder_of_images_may_be_that_of_several_files(tmp_path: Path) -> None:
    own = sample(tmp_path / "a", 0)
    paths = [coco(own)["annotations"], own.write_json("copy.json", json.loads((own.root / "coco.json").read_text()))]
    build_from_coco(paths, own.images, tmp_path / "out.bank")
    assert [one.source for one in content(tmp_path / "out.bank")] == ["coco.json/scene.png#1", "copy.json/scene.png#1"]


def test_a_list_of_one_is_that_one(tmp_path: Path) -> None:
    root = as_voc(sample(tmp_path / "a", 0))
    build_from_voc(root, tmp_path / "one.bank")
    build_from_voc([str(root)], tmp_path / "list.bank")
    with ForegroundBank.open(tmp_path / "one.bank") as one, ForegroundBank.open(tmp_path / "list.bank") as other:
        assert one.fingerprint == other.fingerprint
        assert one.info()["built"] == other.info()["built"]


@pytest.mark.parametrize("repeated", [True, False])
def test_the_flag_is_given_twice_or_with_two_values(repeated: bool, tmp_path: Path) -> None:
    roots = [str(as_voc(sample(tmp_path / name, 0))) for name in ("a", "b")]
    flags = ["--root", roots[0], "--root", roots[1]] if repeated else ["--root", *roots]
    assert main(["bank", "build", "voc", *flags, "--split", "train", "--out", str(tmp_path / "out.bank")]) == 0
    assert len(content(tmp_path / "out.bank")) == 4
