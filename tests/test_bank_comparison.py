"""Two banks on one page, and the FID of a network of the user's."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_bank_measures import cross, disk
from test_bank_report import SCRIPT, foreground, shaped, write
from torch import Tensor, nn

from terse_aug.bank import ForegroundBank
from terse_aug.bank.analysis import FeatureDistance, bank_statistics, render_comparison
from terse_aug.bank.analysis.charts import compared_histogram
from terse_aug.bank.analysis.comparison import largest_gap
from terse_aug.bank.analysis.distributions import MEASURES
from terse_aug.bank.storage.writer import BankWriter
from terse_aug.cli import main


class Means(nn.Module):
    """Mean colors of an image: as many features as it has channels."""

    def __init__(self, returned: str = "features", count: Any = 3) -> None:
        super().__init__()
        self.num_features = count
        self.returned = returned
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        features = self.scale * images.mean((2, 3))
        if self.returned == "fails":
            raise RuntimeError("no memory\nat all")
        return {"features": features, "maps": images, "nan": features / 0}[self.returned]


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_features = 3

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=[2, 3])


@pytest.fixture
def disks(tmp_path: Path) -> Path:
    """Thirty disks, of sizes and tones that grow."""
    made = [foreground(shaped(disk(20 + n), 60 + 2 * n), center=(n / 60, 0.5)) for n in range(30)]
    return write(tmp_path / "disks.bank", made, {"mask_sources": {"mask": 30}, "rejected": {"too <small>": 4}})


@pytest.fixture
def crosses(tmp_path: Path) -> Path:
    """Thirty crosses of the same class, brighter and further to the right, and one of another."""
    made = [foreground(shaped(cross(20 + n), 90 + 3 * n), center=(0.5 + n / 60, 0.5)) for n in range(30)]
    return write(tmp_path / "crosses.bank", [*made, foreground(shaped(cross(30)), 2)])


def compared(first: Path, second: Path, distance: FeatureDistance | None = None) -> str:
    statistics = []
    for path in (first, second):
        with ForegroundBank.open(path) as bank:
            statistics.append(bank_statistics(bank, samples=2))
    return render_comparison(statistics[0], statistics[1], distance)


def rows_of(page: str) -> dict[str, list[str]]:
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(<td.*?)</tr>", page)]
    return {re.sub("<[^>]*>", "", title): [re.sub("<[^>]*>", "", cell) for cell in cells] for title, *cells in rows}


def test_banks_stand_side_by_side(disks: Path, crosses: Path) -> None:
    page = compared(disks, crosses)
    rows = rows_of(page)
    assert rows["Foregrounds"][:2] == ["30", "31"]
    assert rows["Classes"][:2] == ["1", "2"]
    corners = rows["Corners of the outline"]
    assert float(corners[0].split(",")[0]) > 18
    assert corners[1].startswith("12,")
    assert corners[2] == "1.00"
    assert float(rows["Center, across the image"][2]) > 0.9
    assert float(rows["Center, down the image"][2]) == 0
    of_classes = re.findall(r'<td><span class="key( other)?"></span><bdi>(\w+)\.bank', page)
    assert of_classes == [("", "disks"), (" other", "crosses"), (" other", "crosses")]
    assert page.count('alt="mean shape 1 of') == 2
    assert page.count('class="thumbnail"') == 5
    assert page.count("<svg") == 8
    assert page.count('class="line"') == 6
    assert "<b>4</b> too &lt;small&gt;" in page
    assert "No FID was computed" in page
    assert "No class has the same name" not in page


def test_the_page_is_self_contained_and_escapes(disks: Path, crosses: Path) -> None:
    distance = FeatureDistance(1.5, SCRIPT, 3, (30, 31), 128)
    page = compared(disks, crosses, distance)
    assert "<script>" not in page
    assert not re.search(r"https?:|url\(|<link|@import|\bon\w+=", page)
    assert all(f'id="{target}"' in page for target in re.findall(r'href="#(\w+)"', page))
    assert page.count("<img") == page.count(' alt="')
    assert not re.search(r"\bnan\b|\binf\b|None", re.sub(r"base64,[^\"]*", "", page))
    assert compared(disks, crosses, distance) == page


def test_banks_without_a_class_in_common_or_positions(disks: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.bank", [foreground(shaped(disk(30)), 7)])
    page = compared(disks, other)
    assert "No class has the same name in both banks" in page
    assert "Unknown: the foregrounds come from RGBA files" in page
    assert rows_of(page)["Center, across the image"][1:] == ["unknown", ""]
    same = compared(disks, disks)
    assert set(re.findall(r"\b\d\.\d\d(?=<span class=\"meter\">)", same)) == {"0.00"}
    assert str(disks) in re.sub("<[^>]*>", "", same.partition("</h1>")[0])


def test_two_classes_of_one_name_are_both_shown(tmp_path: Path) -> None:
    paths = []
    for name, sizes in (("one", (10, 20)), ("two", (30, 40))):
        with BankWriter(tmp_path / f"{name}.bank", {1: "cat", 2: "cat"}) as writer:
            for label, size in enumerate(sizes, 1):
                writer.add(foreground(shaped(disk(size)), label))
        paths.append(writer.path)
    page = compared(*paths)
    of_classes = page.partition('id="classes"')[2].partition('id="samples"')[0]
    assert re.findall(r"<td>(\d+) x \d+</td>", of_classes) == ["10", "20", "30", "40"]
    assert page.count('class="thumbnail"') == 4


def test_charts_show_nearly_all_of_a_small_bank_beside_a_large_one() -> None:
    few, many = np.array([40, 60, 80]), np.full(1000, 10)
    for measure in MEASURES:
        edges, _ = measure.scale(many, few)
        if edges[-1] > 1:
            assert edges[0] <= 10
            assert edges[-1] >= np.quantile(few, 0.99), measure.title


def test_gaps_of_distributions() -> None:
    """Kolmogorov and Smirnov's statistic."""
    assert largest_gap([1, 2, 3], [1, 2, 3]) == 0
    assert largest_gap([1, 2, 3], [4, 5]) == 1
    assert largest_gap([1, 2, 3, 4], [3, 4, 5, 6]) == 0.5
    assert largest_gap([0, 0, 0, 1], [0, 1, 1, 1]) == 0.5


def test_bars_and_line_are_fractions_of_their_own_bank() -> None:
    svg = compared_histogram([0.1] * 3 + [0.6], [0.7] * 50, [0.0, 0.5, 1.0], [0.0], "two")
    titles = re.findall(r'class="hover".*?<title>([^<]*)', svg)
    assert titles == ["0 to 0.5: 75.0 %, 0.0 %", "from 0.5: 25.0 %, 100.0 %"]
    assert svg.count("<title>") == 2, "that of a bar is covered"
    tall, low = (float(height) for height in re.findall(r'class="bar".*?height="([\d.]+)"', svg))
    assert tall == pytest.approx(3 * low, rel=0.01)
    (line,) = re.findall(r'class="line" d="([^"]*)"', svg)
    levels = [float(level) for level in re.findall(r"V([\d.]+)", line)]
    assert levels[0] > levels[1]
    assert levels[0] == levels[2]


def distance_of(network: nn.Module, first: Path, second: Path, **options: Any) -> FeatureDistance:
    pytest.importorskip("torchmetrics")
    from terse_aug.evaluation.feature_distance import feature_distance

    with ForegroundBank.open(first) as one, ForegroundBank.open(second) as other:
        return feature_distance(one, other, network, "means", **options)


def test_fid_is_the_frechet_distance_of_the_features(disks: Path, crosses: Path) -> None:
    from terse_aug.evaluation.feature_distance import on_gray

    found = distance_of(Means(), disks, crosses, side=24)
    assert (found.network, found.features, found.images, found.side) == ("means", 3, (30, 31), 24)
    features = []
    for path in (disks, crosses):
        with ForegroundBank.open(path) as bank:
            features.append(np.stack([on_gray(one, 24).mean((0, 1)) for one in bank]).astype(np.float64))
    # All channels are equal here, so both covariances have one direction, and the formula is that of one dimension.
    assert np.ptp(features[0], axis=1).max() < 1e-6
    means, deviations = zip(*((own[:, 0].mean(), own[:, 0].std(ddof=1)) for own in features), strict=True)
    expected = 3 * ((means[0] - means[1]) ** 2 + (deviations[0] - deviations[1]) ** 2)
    assert found.value == pytest.approx(expected, rel=1e-3)
    assert distance_of(Means(), disks, disks).value == pytest.approx(0, abs=1e-6)


def test_only_transparent_pixels_are_gray(disks: Path) -> None:
    from terse_aug.evaluation.feature_distance import on_gray

    with ForegroundBank.open(disks) as bank:
        image = on_gray(bank[0], 40)
    assert image.shape == (40, 40, 3)
    assert image[20, 20] == pytest.approx(60 / 255, abs=0.01)
    assert image[0, 0] == pytest.approx(0.5, abs=0.01)
    wide = on_gray(foreground(shaped(np.ones((10, 40), np.uint8), 255)), 40)
    assert (wide.mean(2) > 0.9).sum() == pytest.approx(10 * 40, abs=80)


def test_large_banks_are_sampled(disks: Path, crosses: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("terse_aug.evaluation.feature_distance.MAX_IMAGES", 20)
    one, same, other = (distance_of(Means(), disks, crosses, seed=seed) for seed in (0, 0, 1))
    assert one == same != other
    assert one.images == (20, 20)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Means("maps"), r"expected features \[30, 3\] .*got \[30, 3, 128, 128\]"),
        (Means("nan"), "not finite"),
        (Means("fails"), "RuntimeError at all"),
        (nn.Identity(), "num_features"),
        (Means(count=True), "num_features.*got True"),
        (Means(count=3.0), "num_features.*got 3.0"),
        (Means(count=0), "num_features.*got 0"),
    ],
)
def test_networks_that_give_no_features_are_refused(network: nn.Module, message: str, disks: Path) -> None:
    with pytest.raises(ValueError, match=f"means.*{message}"):
        distance_of(network, disks, disks)


def test_progress_ends_at_the_total_and_counts_may_be_of_numpy(disks: Path, crosses: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    distance_of(Means(count=np.int64(3)), disks, crosses, progress=lambda *call: calls.append(call))
    assert calls == [("features", 30, 30), ("features", 31, 31)]


def test_a_single_foreground_has_no_distance(disks: Path, tmp_path: Path) -> None:
    one = write(tmp_path / "one.bank", [foreground(shaped(disk(30)))])
    with pytest.raises(ValueError, match="at least 2 foregrounds"):
        distance_of(Means(), disks, one)


def test_command(
    disks: Path, crosses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchmetrics")
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "report.html"
    command = ["bank", "report", str(disks), "--compare", str(crosses), "--out", str(out)]
    assert main([*command, "--samples", "2"]) == 0
    assert out.read_text(encoding="utf-8") == compared(disks, crosses)
    assert "30 foregrounds beside 31;" in capsys.readouterr().out
    expected = distance_of(Means(), disks, crosses, side=32).value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        (tmp_path / "scripted.pt").write_bytes(torch.jit.script(Scripted()).save_to_buffer())
    for network in ("test_bank_comparison:Means", "scripted.pt"):
        assert main([*command, "--features", network, "--feature-size", "32"]) == 0
        assert f"FID {expected:.4g} ({network})" in capsys.readouterr().out
        page = out.read_text(encoding="utf-8")
        assert (
            f"{expected:.4g}, of 30 and 31 images"
            in rows_of(page)[f"Fréchet distance (FID) in the features of {network}"]
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--compare", "missing.bank"], "no foreground bank at"),
        (["--features", "test_bank_comparison:Means"], "--features is for --compare"),
        (["--compare", "disks.bank", "--feature-size", "64"], "--feature-size is for --features"),
        (["--compare", "disks.bank", "--features", "missing.pt"], "no such file"),
        (["--compare", "disks.bank", "--features", "disks.bank"], "expected a TorchScript file"),
        (["--compare", "disks.bank", "--features", "no_such_module:make"], "No module named"),
        (["--compare", "disks.bank", "--features", "test_bank_comparison:make"], "no attribute 'make'"),
        (["--compare", "disks.bank", "--features", "pathlib:Path"], "expected a torch.nn.Module"),
        (["--compare", "disks.bank", "--features", "torch.nn:Identity"], "num_features"),
        (["--compare", "disks.bank", "--features", "test_bank_comparison:Means", "--feature-size", "0"], "1 px"),
    ],
)
def test_user_errors_are_one_line(
    disks: Path,
    flags: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bank", "report", str(disks), "--out", "report.html", *flags]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert message in printed
    assert not (tmp_path / "report.html").exists()


def test_pages_of_two_banks_need_no_torch_and_fid_names_its_package(disks: Path, tmp_path: Path) -> None:
    script = """if True:
        import sys
        from terse_aug.cli import main
        command = ["bank", "report", sys.argv[1], "--compare", sys.argv[1], "--out", sys.argv[1] + ".html"]
        assert main(command) == 0 and "torch" not in sys.modules
        sys.modules["torchmetrics"] = None
        sys.exit(main([*command, "--features", "test_bank_comparison:Means"]))
    """
    command = [sys.executable, "-c", script, str(disks)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.returncode == 2, done.stderr
    assert "pip install terse-aug[learn]" in done.stderr
    assert done.stderr.count("\n") == 1
