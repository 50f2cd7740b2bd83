"""The report of a bank: self-contained, correct, and for banks of any kind."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bank_samples import CATEGORIES, make_foreground, write_bank
from numpy.typing import NDArray
from test_bank_measures import cross, disk, texture

from terse_aug.bank import BankWriter, Foreground, ForegroundBank
from terse_aug.bank.analysis import BankStatistics, bank_statistics, render_report
from terse_aug.bank.analysis.charts import histogram
from terse_aug.cli import main

SCRIPT = "<script>alert('ä')</script>&\" 犬"


def foreground(rgba: NDArray[np.uint8], label: int = 1, **changes: Any) -> Foreground:
    return Foreground(**({"rgba": rgba, "label": label, "source": f"{SCRIPT}.jpg#1", "relative_size": 0.2} | changes))


def shaped(mask: NDArray[np.uint8], color: int = 90) -> NDArray[np.uint8]:
    return np.dstack([np.full((*mask.shape, 3), color, np.uint8), 255 * mask])


def write(path: Path, foregrounds: list[Foreground], built: dict[str, Any] | None = None) -> Path:
    names = {one.label: f"{SCRIPT}{one.label}" for one in foregrounds}
    with BankWriter(path, names, overwrite=True) as writer:
        for one in foregrounds:
            writer.add(one)
        writer.built = built or {}
    return path


def report_of(path: Path, **options: Any) -> tuple[BankStatistics, str]:
    with ForegroundBank.open(path) as bank:
        statistics = bank_statistics(bank, **options)
    page = render_report(statistics)
    assert not re.search(r"https?:|url\(|<link|@import|<script|\bon\w+=", page)
    targets = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(re.match(r"#\w+$|data:image/(webp|png);base64,", target) for target in targets)
    assert all(f'id="{target[1:]}"' in page for target in targets if target.startswith("#"))
    assert page.count("<svg") == page.count("</svg>") == page.count('role="img"')
    assert page.count("<img") == page.count(' alt="')
    assert not re.search(r"\bnan\b|\binf\b|None", re.sub(r"base64,[^\"]*", "", page))
    return statistics, page


@pytest.fixture
def varied(tmp_path: Path) -> Path:
    """Thirty disks and crosses, six textures, a copy and a smaller copy of another class."""
    disks = [foreground(shaped(disk(20 + n)), center=(n / 30, 0.5)) for n in range(20)]
    crosses = [foreground(shaped(cross(10 + n)), center=(0.5, n / 10)) for n in range(10)]
    others = [foreground(texture(seed), 2, center=None) for seed in range(6)]
    copies = [foreground(texture(0), 2), foreground(np.ascontiguousarray(texture(1)[::2, ::2]), 3)]
    built = {
        "from": "masks",
        "rejected": {"mask <is> empty": 3, "too small": 1200},
        "repaired": {"number written as <text>": 7},
        "mask_sources": {"mask": 30, "grabcut": 8},
    }
    return write(tmp_path / "varied.bank", [*disks, *crosses, *others, *copies], built)


def test_the_page_is_self_contained_and_escapes(varied: Path) -> None:
    statistics, page = report_of(varied)
    assert html.escape(SCRIPT).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") + "1" in page
    assert "<script>" not in page
    assert "prefers-color-scheme: dark" in page
    assert "viewport" in page
    assert statistics.info["foregrounds"] == 38


def test_statistics_and_page_are_correct(varied: Path) -> None:
    statistics, page = report_of(varied, samples=4)
    assert [one.count for one in statistics.classes] == [30, 7, 1]
    first, second, single = statistics.classes
    assert first.mean_shapes is not None
    assert first.mean_shapes.counts.sum() == 30
    assert second.mean_shapes is None
    assert single.diversity is None
    assert first.diversity is not None
    assert second.diversity is not None
    assert 0 < first.diversity.mean < second.diversity.mean
    assert [len(one.samples) for one in statistics.classes] == [4, 4, 1]
    assert first.length == pytest.approx(3.5, abs=0.5)
    assert (statistics.copies, len(statistics.centers)) == (1, 30)
    assert "The positions of 8 foregrounds are unknown" in page
    assert "<b>30</b> mask" in page
    assert "<b>1,200</b> too small" in page
    assert "<b>3</b> mask &lt;is&gt; empty" in page
    assert page.index("too small") < page.index("mask &lt;is&gt; empty")
    assert "<b>7</b> number written as &lt;text&gt;" in page
    assert re.search(r"<b>1,203</b>objects rejected", page)


def test_duplicates_are_shown(varied: Path) -> None:
    statistics, page = report_of(varied)
    kinds = {(group.count, group.is_identical, len(group.classes)) for group in statistics.largest_groups}
    assert {(2, True, 1), (2, False, 2)} <= kinds  # the disks, which are flat, are alike as well
    assert page.count("of different classes") == 1
    assert "2 identical" in page


def test_measures_are_those_of_each_foreground(tmp_path: Path) -> None:
    ring = disk(60)
    ring[20:40, 20:40] = 0
    shapes = [np.ones((9, 30), np.uint8), cross(40), ring]
    path = write(tmp_path / "x.bank", [foreground(shaped(mask), number) for number, mask in enumerate(shapes, 1)])
    statistics, page = report_of(path)
    assert statistics.corners[:2].tolist() == [4, 12]
    np.testing.assert_allclose(statistics.length[:2], 4, rtol=0.03)
    np.testing.assert_allclose(statistics.fill, [1, 5 / 9, ring.mean()], rtol=1e-5)
    assert [one.with_holes for one in statistics.classes] == [0, 0, 1]
    assert [one.several_parts for one in statistics.classes] == [0, 0, 0]
    assert (statistics.classes[0].width, statistics.classes[0].height) == (30, 9)
    assert "Unknown: the foregrounds come from RGBA files" in page


ODD = {
    "one": [foreground(shaped(disk(30)))],
    "one pixel": [foreground(shaped(np.ones((1, 1), np.uint8)))],
    "lines": [
        foreground(shaped(np.ones(shape, np.uint8)), 1 + n % 2) for n, shape in enumerate([(1, 90), (70, 1)] * 3)
    ],
    "faint": [foreground(np.full((12, 20, 4), 3, np.uint8))],
    "negative label": [foreground(shaped(disk(20)), -4), foreground(shaped(disk(9)), 0)],
    "all the same": [foreground(shaped(disk(40))) for _ in range(60)],
    "many parts": [foreground(shaped(np.eye(40, dtype=np.uint8)[::-1][:, ::-1] * (np.arange(40) % 3 != 1)))],
    "many classes": [foreground(shaped(disk(10 + n % 5)), n + 1) for n in range(300)],
    "large": [foreground(shaped(disk(1500)), relative_size=1.9, center=(0.0, 1.0))],
    "no source": [foreground(shaped(disk(9)), source="")],
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_banks(kind: str, tmp_path: Path) -> None:
    statistics, page = report_of(write(tmp_path / "odd.bank", ODD[kind]))
    assert sum(one.count for one in statistics.classes) == len(ODD[kind])
    assert page.count("Not recorded.") == 2
    if kind == "all the same":
        assert [group.count for group in statistics.largest_groups] == [60]
        assert statistics.copies == 59


@pytest.mark.parametrize("counts", [["x"], "x", 5, {"a": "b"}, {"a": [1]}, {"\x1b[2J\ud800": 3, "b": 4}, None])
@pytest.mark.parametrize("what", ["rejected", "repaired"])
def test_the_command_prints_any_description(
    what: str, counts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "odd.bank", ODD["one"], {what: counts})
    for more in ([], ["--json"]):
        assert main(["bank", "info", str(path), *more]) == 0
        output = capsys.readouterr().out.encode().decode()
        assert "\x1b" not in output
        printed = isinstance(counts, dict) and "b" in counts
        assert more or (f"{what} when it was built\n       4  b\n       3   [2J\\ud800" in output) == printed


def test_the_same_seed_gives_the_same_page(varied: Path) -> None:
    pages = [report_of(varied, samples=3, seed=seed)[1] for seed in (0, 0, 1)]
    assert pages[0] == pages[1] != pages[2]
    shown = [re.findall(r'title="number (\d+):', page) for page in pages]
    assert shown[0] != shown[2]
    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    report_of(varied)
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002


def test_random_parts_are_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("terse_aug.bank.analysis.statistics._MAX_DRAWN_PER_CLASS", 40)
    monkeypatch.setattr("terse_aug.bank.analysis.statistics._MAX_SAMPLES", 4)
    monkeypatch.setattr("terse_aug.bank.analysis.page._MAX_DOTS", 50)
    many = [foreground(shaped(disk(20 + n % 9)), 1 + (n > 59), center=(0.5, n / 99)) for n in range(90)]
    statistics, page = report_of(write(tmp_path / "many.bank", many))
    assert [one.drawn for one in statistics.classes] == [40, 30]
    assert [len(one.samples) for one in statistics.classes] == [2, 2]
    assert re.search(r"computed from a random part[^<]*1 40 of 60\.", page)
    assert "one dot for 50 drawn of 90" in page
    (dots,) = re.findall(r'class="dots" d="([^"]*)"', page)
    assert dots.count("M") == 50


def test_a_view_is_reported_as_it_is(varied: Path) -> None:
    with ForegroundBank.open(varied) as bank:
        statistics = bank_statistics(bank.select(categories=[2]).select([1, 2, 6]))
        assert [(one.count, len(one.samples)) for one in statistics.classes] == [(3, 3)]
        assert len(statistics.centers) == 0
        reported: list[tuple[str, int, int]] = []
        bank_statistics(bank, progress=lambda *what: reported.append(what))
    assert {what for what, _, _ in reported} == {"foregrounds", "shapes of classes", "duplicates"}
    assert all(0 <= done <= total for _, done, total in reported)


def test_bars_count_every_value() -> None:
    values = [0.0, 0.1, 0.5, 0.99, 1.0, 7.0]
    svg = histogram(values, [0.0, 0.5, 1.0, 2.0], [0.0, 0.5, 5.0], "some <name>", " px")
    assert re.findall(r"<title>([^<]*)</title>", svg) == ["0 to 0.5 px: 2", "0.5 to 1 px: 2", "from 1 px: 2"]
    assert "some &lt;name&gt;" in svg
    heights = {float(height) for height in re.findall(r'class="bar".*?height="([\d.]+)"', svg)}
    assert len(heights) == 1
    assert re.findall(r'class="x"[^>]*>([^<]*)<', svg) == ["0", "1/2"]


def test_command(varied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    arguments = ["bank", "report", str(varied), "--out", str(out)]
    assert main([*arguments, "--samples", "2", "--seed", "3"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "38 foregrounds of 3 classes" in printed.out
    assert out.read_text(encoding="utf-8") == report_of(varied, samples=2, seed=3)[1]
    assert main(arguments) == 0
    assert out.read_text(encoding="utf-8") == report_of(varied, samples=8, seed=0)[1]


def test_centers_are_stored_and_old_banks_have_none(tmp_path: Path) -> None:
    old, new = tmp_path / "old.bank", tmp_path / "new.bank"
    write_bank(old, 5)
    places = [(0.25, 0.5), None, (0.0, 1.0), (1.0, 0.0), (0.125, 0.75)]
    with BankWriter(new, CATEGORIES) as writer:
        for seed, place in enumerate(places):
            writer.add(make_foreground(seed, center=place))
    with ForegroundBank.open(old) as bank, ForegroundBank.open(new) as more:
        assert [one.center for one in more] == places
        assert [one.center for one in bank] == [None] * 5
        assert bank.centers.shape == more.centers.shape == (5, 2)
        assert np.isnan(bank.centers).all()
        assert np.isnan(more.centers).all(1).tolist() == [False, True, False, False, False]
        np.testing.assert_array_equal(more.select([4, 0]).centers, [[0.125, 0.75], [0.25, 0.5]])
        assert bank.fingerprint == more.fingerprint  # what is trained on is the same
    assert b"centers" not in old.read_bytes()
    with BankWriter(tmp_path / "good.bank", CATEGORIES) as writer:
        for wrong in ((-0.1, 0.5), (0.5, float("nan")), (0.5,)):
            with pytest.raises(ValueError, match="fractions of the image"):
                writer.add(make_foreground(0, center=wrong))
        writer.add(make_foreground(0))
