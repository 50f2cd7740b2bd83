"""What the lines of YOLO's label files hold: what the data set says, or they are rejected. And its names of classes."""

from __future__ import annotations

from pathlib import Path

import pytest
from annotated_samples import HEIGHT, WIDTH, AnnotatedImage, as_yolo, by_name, make_sample

from terse_aug.bank import BuildReport, build_from_yolo

BOX_LINE = "0 .4375 .5 .375 .5"  # 48 x 48 px
POLYGON_LINE = "0 .25 .25 .625 .25 .625 .75 .25 .75"  # the same
OTHER_LINES = ["0 .5 .5 .2 .3", "0 .1 .1 .5 .1 .5 .6 .4 .7 .1 .6"]
TRIANGLE = "0 .25 .25 .625 .25 .625 .75"


@pytest.fixture
def sample(tmp_path: Path) -> AnnotatedImage:
    return make_sample(tmp_path)


def build(sample: AnnotatedImage, lines: list[str], yaml: str = "", **options: object) -> BuildReport:
    if not (sample.root / "labels").is_dir():
        as_yolo(sample)
    (sample.root / "labels" / "scene.txt").write_text("\n".join(lines))
    (sample.root / "data.yaml").write_text("names: [cat, dog]\n" + yaml)
    options = {"boxes": "box", "overwrite": True} | options
    return build_from_yolo(sample.images, sample.root / "out.bank", **options)


def is_square(report: BuildReport, name: str = "cat") -> bool:
    """Whether the object is the one of the lines above."""
    width, height = by_name(report)[name].size
    return abs(width - 0.375 * WIDTH) <= 2 and abs(height - 0.5 * HEIGHT) <= 2


@pytest.mark.parametrize(
    ("shape", "others", "repaired"),
    [
        (BOX_LINE + " .91", [], 0),
        (BOX_LINE + " .91 1", ["1 .5 .5 .2 .3 .8 2"], 2),  # track ids are whole, and above 1 in some lines
        (POLYGON_LINE + " .91 1", ["1 .1 .1 .5 .1 .5 .6 .7 12"], 2),
        (POLYGON_LINE + " .91", ["1 .1 .1 .5 .1 .5 .6 .7"], 2),  # the lengths differ: no keypoints
    ],
)
def test_confidence_and_track_id_are_left_out(
    sample: AnnotatedImage, shape: str, others: list[str], repaired: int
) -> None:
    report = build(sample, [shape, *others])
    assert is_square(report)
    assert (sum(report.kept.values()), report.rejected) == (1 + len(others), {})
    assert sum(report.repaired.values()) == repaired


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        ([BOX_LINE + " .91 1"], 0),  # or a triangle
        ([POLYGON_LINE + " .91 1", POLYGON_LINE + " .72 0"], 0),  # or five points
        ([POLYGON_LINE + " .91"], 0),  # or a box and a keypoint
        ([TRIANGLE, POLYGON_LINE + " .91 2"], 1),  # polygons, and a coordinate twice as large as the image
        ([POLYGON_LINE, POLYGON_LINE + " .5", TRIANGLE + " .5"], 1),  # a coordinate is missing in polygons
        (["0 32 24 80 24 80 72", POLYGON_LINE], 1),  # pixels
        (["0 60 50 40 40", BOX_LINE], 1),
    ],
)
def test_lines_that_do_not_say_what_they_are_are_rejected(sample: AnnotatedImage, lines: list[str], kept: int) -> None:
    lines = [*lines, BOX_LINE.replace("0 ", "1 ", 1)]
    report = build(sample, lines)
    assert (sum(report.kept.values()), sum(report.rejected.values())) == (1 + kept, len(lines) - 1 - kept)


def test_extra_values_say_what_the_lines_do_not(sample: AnnotatedImage) -> None:
    for shape, extra in ((BOX_LINE, " .91 1"), (POLYGON_LINE, " .91 1"), (POLYGON_LINE, " .91")):
        report = build(sample, [shape + extra], extra_values=extra.count(" "))
        assert is_square(report)
        assert report.repaired == {}
    assert build(sample, [BOX_LINE + " .91 1"], extra_values=0).mask_sources == {"mask": 1}
    with pytest.raises(ValueError, match="extra_values of 0 or more"):
        build(sample, [BOX_LINE], extra_values=-1)


def test_polygons_that_end_at_the_border_stay_polygons(sample: AnnotatedImage) -> None:
    report = build(sample, ["0 0 0 .5 0 1 1", POLYGON_LINE.replace("0 ", "1 ", 1)])
    assert (report.mask_sources, report.repaired) == ({"mask": 2}, {})
    assert is_square(report, "dog")


KEYPOINTS = " .3 .3 2 .5 .5 1"


def test_keypoints_belong_to_a_box(sample: AnnotatedImage) -> None:
    report = build(sample, [BOX_LINE + KEYPOINTS, "1 .5 .5 .2 .3 0 0 0 .5 .5 1"])
    assert (is_square(report), report.mask_sources, sum(report.repaired.values())) == (True, {"box": 2}, 2)
    report = build(sample, [BOX_LINE + KEYPOINTS, "1 .5 .5 .2 .3" + KEYPOINTS + " .9 3"], yaml="kpt_shape: [2, 3]\n")
    assert (is_square(report), report.mask_sources, report.repaired) == (True, {"box": 2}, {})


@pytest.mark.parametrize("line", [BOX_LINE + KEYPOINTS + " .6 .6 2", BOX_LINE + " .3 .3 .5 .5", POLYGON_LINE])
def test_lines_that_disagree_with_kpt_shape_are_rejected(sample: AnnotatedImage, line: str) -> None:
    report = build(sample, [line, "1 .5 .5 .2 .3" + KEYPOINTS], yaml="kpt_shape: [2, 3]\n")
    assert report.kept == {"dog": 1}
    assert report.rejected == {"line is not class, box and the keypoints of kpt_shape": 1}


# --- names of classes -----------------------------------------------------------------------------------------------


def test_names_that_yaml_takes_for_other_values(sample: AnnotatedImage) -> None:
    as_yolo(sample)
    (sample.root / "data.yaml").write_text("names:\n  0: no\n  1: on\n  2: 1.0\n  3: ~\n")
    report = build_from_yolo(sample.images, sample.root / "out.bank", boxes="box")
    assert report.kept == {"no": 1, "on": 1}


@pytest.mark.parametrize(
    ("file", "written", "encoding"),
    [
        ("classes.txt", "utf-16", None),
        ("classes.txt", "utf-16-le", None),
        ("data.yaml", "utf-16-be", None),
        ("data.yaml", "utf-8-sig", None),
        ("data.yaml", "cp1252", "cp1252"),
    ],
)
def test_names_in_other_encodings(sample: AnnotatedImage, file: str, written: str, encoding: str | None) -> None:
    as_yolo(sample)
    (sample.root / "data.yaml").unlink()
    text = "Käfer\nTür\n" if file == "classes.txt" else "names: [Käfer, Tür]\n"
    (sample.root / file).write_bytes(text.encode(written))
    labels = sample.root / "labels" / "scene.txt"
    labels.write_bytes(labels.read_text().encode(written))
    report = build_from_yolo(sample.images, sample.root / "out.bank", boxes="box", encoding=encoding)
    assert report.kept == {"Käfer": 1, "Tür": 1}


def test_names_in_an_unknown_encoding_are_refused(sample: AnnotatedImage) -> None:
    as_yolo(sample)
    names = sample.root / "own.txt"
    names.write_bytes("Käfer\nTür\n".encode("cp1252"))
    with pytest.raises(ValueError, match="--encoding"):
        build_from_yolo(sample.images, sample.root / "out.bank", names=names)
    with pytest.raises(ValueError, match="expected an encoding"):
        build_from_yolo(sample.images, sample.root / "out.bank", names=names, encoding="x")
