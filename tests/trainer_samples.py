"""A tiny COCO-format set for the torchvision example, and what a run on it writes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

WIDTH, HEIGHT = 96, 80


def write_coco(folder):
    """A COCO-format set of six images: two classes, a crowd, and on the last nothing but a sliver."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(6):
        pixels = rng.integers(0, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        images.append({"id": 10 + number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT})
        for category in (3, 7) if number < 5 else ():
            x, y = 5 + 4 * number + 40 * (category == 7), 10 + 5 * number
            pixels[y : y + 30, x : x + 24] = (250, 40, 40) if category == 3 else (40, 40, 250)
            outline = [x, y, x + 24, y, x + 24, y + 30, x, y + 30]
            points = {"keypoints": [x + 12, y + 9, 2, x + 4, y + 5, 2, 0, 0, 0]} if category == 3 else {}
            annotations.append(_annotation(10 + number, category, [x, y, 24, 30], [outline]) | points)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, 400, HEIGHT * WIDTH - 400]}
    annotations.append(_annotation(10, 3, [0, 0, 5, 80], crowd, iscrowd=1))
    annotations.append(_annotation(15, 3, [60, 9, 0.2, 9], [[60, 9, 61, 9, 61, 18]]))
    annotations = [own | {"id": number} for number, own in enumerate(annotations, start=1)]
    names = ["nose", "left_eye", "right_eye"]
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "person", "keypoints": names}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def _annotation(image, category, box, segmentation, iscrowd=0):
    own = {"image_id": image, "category_id": category, "bbox": box, "segmentation": segmentation}
    return own | {"area": box[2] * box[3], "iscrowd": iscrowd}


def coco_flags(coco, out, *more):
    """Flags of a run on `coco` that takes seconds."""
    annotations = coco / "annotations.json"
    flags = ["--annotations", annotations, "--images", coco, "--val-annotations", annotations, "--out", out]
    flags += ["--image-size", "64", "--batch-size", "2", "--threads", "1", "--log-every", "2", *more]
    return [str(flag) for flag in flags]


def perfect_predictions(dataset):
    """The ground truth as predictions."""
    targets = [dataset[index][1] for index in range(len(dataset))]
    kept = ("boxes", "labels", "masks")
    return {
        own["image_id"]: {key: own[key] for key in kept} | {"scores": torch.ones(len(own["boxes"]))} for own in targets
    }


def check_results(folder):
    """What `results.json` of a run of four iterations on `coco` holds, and the other files."""
    results = json.loads((folder / "results.json").read_text())
    arguments, split, seconds = results["arguments"], results["data"]["split"], results["seconds"]
    assert (arguments["iterations"], arguments["lr"]) == (4, pytest.approx(0.0025))
    assert results["data"]["classes"] == ["person", "dog"]
    assert (split["train"], len(split["test"])) == ([f"{n}.png" for n in range(5)], 6)
    assert [entry["iteration"] for entry in results["evaluations"]] == [2, 4]
    sizes = {"AP_small", "AP_medium", "AP_large"}
    assert set(results["evaluations"][0]["box"]) == {"AP", "AP50", "AP75", "per_class", *sizes}
    assert seconds["training"] > 0 < seconds["evaluation"]
    assert seconds["per_iteration"] == pytest.approx(seconds["training"] / 4)
    assert results["versions"]["torch"] == torch.__version__.split("+")[0]
    assert list(folder.glob("events.out.tfevents.*"))
    assert not list(folder.rglob("*.partial"))
    return results


def check_probe(folder, results, state):
    """The policy has learned, and its composites were measured."""
    assert state["counters.count/updates"] == 2
    assert 8 < state["counters.count/objects_pasted"] <= 12  # two on each of two images, in three of four iterations
    assert results["arguments"]["policy"] == "critic"
    for kind in ("composites", "random composites"):
        found = results["evaluations"][-1][kind]
        assert found["objects"] > 0 < found["neighbour distance"]
        assert 0 <= found["missed fraction"] <= 1
        assert 0 < found["diversity"] < 1.5
        assert sum(found["hardness histogram"]) == pytest.approx(1)
        assert set(found["std ratio by class"]) <= {"1", "2", "3"}
    events = EventAccumulator(str(folder), size_guidance={"histograms": 0}).Reload()
    drawn = events.Histograms("composites/hardness histogram")[-1].histogram_value
    assert drawn.num == results["evaluations"][-1]["composites"]["objects"]
    assert 0 <= drawn.min <= drawn.max <= 1


def zero_if_large(fill):
    """Random numbers for VGG's dense layers, which SSD does not have, would take most of the time."""
    return lambda tensor, *more, **own: tensor.detach().zero_() if tensor.numel() > 2e7 else fill(tensor, *more, **own)
