"""The folder of a run of learning to cut out: whose files are replaced, and what is logged."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from discovery_samples import OFTEN, TINY, disks
from PIL import Image

from terse_aug.discovery import LayeredGenerator
from terse_aug.discovery.agreement import agreement
from terse_aug.discovery.generator import draw_codes
from terse_aug.discovery.learn import Intervals, learn_cutter
from terse_aug.discovery.run_folder import CHECKPOINT, METRICS, SHOWN, SUMMARY, RunFolder
from terse_aug.utils.random import generator_for
from terse_aug.utils.warnings import TerseWarning

pytest.importorskip("segmentation_models_pytorch")
pytest.importorskip("tensorboard")
RUN = {"seed": 0}


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["thesis.tex", METRICS, SUMMARY, "layers-of-paint.png", "layers-0000002.png"])
def test_a_folder_with_other_files_is_refused_and_left_as_it_is(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"step": 1}\n')
    before = content_of(tmp_path)
    with pytest.raises(ValueError, match=rf"holds other files, such as {name}, and no {CHECKPOINT}"):
        learn_cutter(disks(200), TINY, out=tmp_path, intervals=OFTEN)
    assert content_of(tmp_path) == before


def test_a_run_that_was_stopped_at_once_resumes(tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "learning to cut out":
            raise KeyboardInterrupt

    rarely = Intervals(metrics=1, layers=2, checkpoint=100)
    with pytest.raises(KeyboardInterrupt):
        learn_cutter(disks(200), TINY, out=tmp_path / "run", intervals=rarely, progress=stop)
    folder = RunFolder(tmp_path / "run")
    assert [line["step"] for line in folder.metrics()] == [1]
    with pytest.raises(KeyboardInterrupt):
        learn_cutter(disks(200), TINY, out=folder.path, intervals=rarely, progress=stop)
    assert [line["step"] for line in folder.metrics()] == [1]


def test_files_of_other_names_are_no_pictures_of_layers(tmp_path: Path) -> None:
    for name in ("layers-0000010.png", "layers-0000002.png", "layers-of-paint.png", "layers-1.png", "layers-.png"):
        (tmp_path / name).touch()
    assert [step for step, _ in RunFolder(tmp_path).layer_files()] == [2, 10]


def test_metrics_are_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    folder.save_checkpoint(RUN, {"done": 1})
    lines = "".join(json.dumps({"step": step}) + "\n" for step in (1, 2))
    (tmp_path / METRICS).write_text(lines)
    folder.write_summary({"steps": 1})
    summary = (tmp_path / SUMMARY).read_text()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        for write in (lambda: folder.load_checkpoint(RUN), lambda: folder.write_summary({"steps": 2})):
            with pytest.raises(KeyboardInterrupt):
                write()
    assert (tmp_path / METRICS).read_text() == lines
    assert (tmp_path / SUMMARY).read_text() == summary
    folder.load_checkpoint(RUN)
    assert [line["step"] for line in folder.metrics()] == [1]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_picture_has_a_column_for_each_of_its_codes(tmp_path: Path) -> None:
    layers = LayeredGenerator(TINY)(*draw_codes(TINY, SHOWN, generator_for(0)))
    folder = RunFolder(tmp_path)
    folder.add_layers(3, layers._replace(composite=layers.composite.detach(), foreground=layers.foreground.detach()))
    folder.close()
    ((step, path),) = folder.layer_files()
    with Image.open(path) as image:
        assert (step, image.size) == (3, (SHOWN * TINY.size, 4 * TINY.size))


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"metrics": 0}, "metrics: expected a whole number of at least 1"),
        ({"checkpoint": -250}, "checkpoint: expected a whole number of at least 1"),
        ({"layers": 500.0}, "layers: expected a whole number"),
        ({"metrics": 40}, "layers: expected a multiple of metrics, 40 steps, got 500"),
    ],
)
def test_intervals_out_of_range_are_refused(values: dict[str, int], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        Intervals(**values)


@pytest.mark.parametrize("reason", ["a file in its place", "pip install terse-aug"])
def test_a_log_that_cannot_be_written_does_not_end_a_training(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    if "pip" in reason:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.warns(TerseWarning, match=rf"TensorBoard: .*{reason}"):
            folder.add_metrics(1, {"generator": 1.0})
    else:
        (folder.path / "tensorboard").write_text(reason)
        with pytest.warns(TerseWarning, match="TensorBoard"):
            folder.add_metrics(1, {"generator": 1.0})
    folder.add_metrics(2, {"generator": 2.0})
    folder.close()
    assert [line["generator"] for line in folder.metrics()] == [1, 2]


def test_two_empty_masks_agree() -> None:
    image, nothing = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), bool)
    half = nothing.copy()
    half[:4] = True
    empty = (image, nothing, nothing)
    assert agreement(lambda _: nothing, [empty]).plain() == {"pooled": 1, "per_image": 1, "images": 1}
    found = agreement(lambda _: half[:, ::-1] & (np.arange(8) < 4), [(image, half, nothing), (image, half, half)])
    assert (found.pooled, found.per_image) == (0.5, 0.75), "what is not counted is empty in both"
    assert agreement(lambda _: half, [empty]).per_image == 0
