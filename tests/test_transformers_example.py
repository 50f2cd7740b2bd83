"""The example for transformers runs, resumes, and learns what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from factories import ellipse
from frameworks import QUIET_TRANSFORMERS, need_transformers
from PIL import Image

need_transformers()

from example_modules import importable, load_script
from transformers_factories import make_model, padding_processor

pytestmark = QUIET_TRANSFORMERS
SCRIPT = Path(__file__).parents[1] / "examples" / "transformers" / "train.py"


def write_coco(folder: Path, count: int = 4) -> Path:
    """A COCO JSON of images with an ellipse each, in categories 3 and 8."""
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(count):
        pixels = generator.integers(0, 256, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 96, "width": 96})
        centre, radii, outline = ellipse(generator, 96, 96)
        box = [*(centre - radii).tolist(), *(2 * radii).tolist()]
        own = {"id": number + 1, "image_id": number, "category_id": (3, 8)[number % 2], "bbox": box, "iscrowd": 0}
        annotations.append(own | {"area": box[2] * box[3], "segmentation": [outline.flatten().tolist()]})
    categories = [{"id": 3, "name": "cup"}, {"id": 8, "name": "spoon"}]
    path = folder / "data.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def test_it_trains_saves_resumes_and_evaluates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    data = write_coco(tmp_path)
    model, processor = make_model("DETR"), padding_processor(size={"height": 64, "width": 64})
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    command = ["--model", tmp_path / "model", "--annotations", data, "--images", tmp_path, "--val-annotations", data]
    command += ["--out", tmp_path / "run", "--policy", "critic", "--batch-size", 2, "--save-every", 1]
    with importable(SCRIPT.parent, "transformers_example"):
        script = load_script(SCRIPT, "transformers_example")
        script.main([str(part) for part in [*command, "--steps", 1]])
        checkpoint = tmp_path / "run" / "checkpoint-1"
        assert (checkpoint / "terse_aug.pt").exists()
        script.main([str(part) for part in [*command, "--steps", 2, "--resume", checkpoint]])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["policy"], results["steps"]) == ("critic", 2)
    assert 0 <= results["AP"] <= 100
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert (tmp_path / "run" / "checkpoint-2" / "terse_aug.pt").exists()
