"""Every image that pillow opens is used, whatever its ending; what it does not open is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from annotated_samples import as_labelme, as_voc, as_yolo, make_sample
from bank_samples import gradient
from PIL import Image

from terse_aug.bank import (
    BuildReport,
    build_from_labelme,
    build_from_masks,
    build_from_products,
    build_from_rgba,
    build_from_voc,
    build_from_yolo,
)
from terse_aug.data.background_pool import BackgroundPool

FORMATS = {".jfif": "JPEG", ".jpe": "JPEG", ".mpo": "JPEG"}
HAS_AVIF = ".avif" in Image.registered_extensions()
ENDINGS = (".jfif", ".jpe", ".gif", ".ppm", ".jp2", ".mpo", ".tga", ".pcx", *([".avif"] if HAS_AVIF else []))


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, FORMATS.get(path.suffix, Image.registered_extensions()[path.suffix]))


def test_annotation_readers_use_every_image(tmp_path: Path) -> None:
    sample = make_sample(tmp_path)
    as_yolo(sample)
    voc = as_voc(sample)
    files = [sample.root / "labels" / "scene.txt", as_labelme(sample) / "scene.json", voc / "Annotations" / "scene.xml"]
    folders = [sample.images, files[1].parent, voc / "JPEGImages"]
    for file in files:
        text = file.read_text()
        file.unlink()
        for number in range(len(ENDINGS)):
            file.with_stem(f"s{number}").write_text(text.replace("scene.png", "old.png"))
    for folder in folders:
        (folder / "scene.png").unlink(missing_ok=True)
        for number, ending in enumerate(ENDINGS):
            save(sample.pixels, folder / f"s{number}{ending}")
    reports = [
        build_from_yolo(sample.images, tmp_path / "yolo.bank", boxes="box"),
        build_from_labelme(folders[1], tmp_path / "labelme.bank", boxes="box"),
        build_from_voc(voc, tmp_path / "voc.bank", boxes="box"),
    ]
    kept = {"cat": len(ENDINGS), "dog": len(ENDINGS)}
    assert [(report.kept, report.rejected) for report in reports] == [(kept, {})] * 3


def test_folder_readers_and_the_pool_use_every_image(tmp_path: Path) -> None:
    product = np.full((90, 90, 3), 255, np.uint8)
    product[20:70, 30:60] = (160, 60, 20)
    for number, ending in enumerate(ENDINGS):
        save(product, tmp_path / "products" / f"s{number}{ending}")
        save(gradient(80, 120), tmp_path / "images" / f"s{number}{ending}")
        save(np.pad(np.ones((20, 30), np.uint8), ((10, 50), (40, 50))), tmp_path / "masks" / f"s{number}.png")
    assert build_from_products(tmp_path / "products", tmp_path / "a.bank").kept == {"object": len(ENDINGS)}
    report = build_from_masks(tmp_path / "images", tmp_path / "masks", tmp_path / "b.bank")
    assert report.kept == {"object": len(ENDINGS)}
    assert len(BackgroundPool(tmp_path / "images")) == len(ENDINGS)


def test_transparency_of_other_formats(tmp_path: Path) -> None:
    rgba = np.dstack([gradient(40, 40), np.pad(np.full((20, 20), 255, np.uint8), 10)])
    for ending in (".tga", ".gif", ".png"):
        save(rgba, tmp_path / "objects" / f"a{ending}")
    assert build_from_rgba(tmp_path / "objects", tmp_path / "out.bank").kept == {"object": 3}


def test_images_that_cannot_be_opened_are_counted(tmp_path: Path) -> None:
    sample = make_sample(tmp_path)
    as_yolo(sample)
    (sample.images / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (sample.root / "labels" / "phone.txt").write_text("0 .5 .5 .2 .2")
    report: BuildReport = build_from_yolo(sample.images, tmp_path / "yolo.bank", boxes="box")
    assert (report.kept, report.rejected) == ({"cat": 1, "dog": 1}, {"image file cannot be read": 1})
    objects = tmp_path / "objects"
    save(np.dstack([gradient(40, 40), np.pad(np.full((20, 20), 255, np.uint8), 10)]), objects / "a.png")
    (objects / "b.heic").write_bytes(b"\0\0\0\x18ftypheic")
    assert build_from_rgba(objects, tmp_path / "rgba.bank").rejected == {"image cannot be read": 1}
    assert len(BackgroundPool(objects)) == 2  # counted as background_unreadable where it is drawn


def test_label_files_without_an_image_are_counted(tmp_path: Path) -> None:
    sample = make_sample(tmp_path)
    as_yolo(sample)
    for name in ("lost.txt", "train/lost too.txt", "classes.txt"):
        (sample.root / "labels" / name).parent.mkdir(exist_ok=True)
        (sample.root / "labels" / name).write_text("0 .5 .5 .2 .2")
    report = build_from_yolo(sample.images, tmp_path / "out.bank", boxes="box")
    assert (report.kept, report.rejected) == ({"cat": 1, "dog": 1}, {"label file without an image": 2})
    for file in (sample.root / "labels").glob("scene.txt"):
        file.rename(sample.images / "scene.txt")  # beside the image
    sample.images.rename(tmp_path / "photographs")
    (tmp_path / "photographs" / "lost.txt").write_text("0 .5 .5 .2 .2")
    report = build_from_yolo(tmp_path / "photographs", tmp_path / "beside.bank", boxes="box")
    assert (report.kept, report.rejected) == ({"cat": 1, "dog": 1}, {"label file without an image": 1})
