"""Renders the report: one self-contained HTML file with the results and images of a run."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2

from terse_aug import PARAMETERS
from terse_demo import wording
from terse_demo.charts import COLORS, Series, bar_chart, line_chart
from terse_demo.data import CLASSES
from terse_demo.measurement import ScoredImage, ScoredObject
from terse_demo.results import Results, cost, diversity, final
from terse_demo.training import ArmResult

NAMES = {"none": "no pasting", "random": "random", "critic": "critic"}
"""Names of the arms in the report."""

_JPEG_QUALITY = 93
_LABEL_WIDTH, _LABEL_HEIGHT = 40.0, 9.0
"""Size of the text "0: 0.00" on an image, px of the image."""


def render(results: Results, arms: Mapping[str, ArmResult]) -> str:
    """The report as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(image_uri=image_uri, labels=labels, classes=CLASSES, names=NAMES, colors=COLORS)
    return environment.get_template("report.html.jinja").render(
        results=results,
        headline=wording.headline(results),
        paragraphs=wording.paragraphs(results),
        charts=charts(results),
        rows=table(results),
        stages=stages(arms["critic"]),
        tests={name: arm.tests for name, arm in arms.items()},
    )


def charts(results: Results) -> dict[str, str]:
    """The charts by name, as data URIs."""
    arms = results["arms"]
    precision = [
        Series(NAMES[arm], arm, _curve(result, lambda one: one["average_precision"]["AP"]))
        for arm, result in arms.items()
    ]
    missed = [
        Series(policy, policy, _curve(arms["critic"], lambda one, policy=policy: one["missed"][policy]))
        for policy in ("random", "critic")
    ]
    std_ratios = [
        Series(arm, arm, list(enumerate(arms[arm]["measurements"][-1]["std_ratio"][name] for name in PARAMETERS)))
        for arm in ("random", "critic")
    ]
    last = arms["critic"]["measurements"][-1]["hardness"]
    hardness = [Series(policy, policy, list(enumerate(last[policy]))) for policy in ("random", "critic")]
    fifths = ["0 to 0.2", "0.2 to 0.4", "0.4 to 0.6", "0.6 to 0.8", "0.8 to 1"]
    parameters = [name.replace("_", " ") for name in PARAMETERS]
    return {
        "precision": line_chart(precision, "iterations", "AP, %"),
        "missed": line_chart(missed, "iterations", "missed, %"),
        "hardness": bar_chart(fifths, hardness, 20.0, "objects, % (dotted: equal parts)"),
        "std_ratio": bar_chart(parameters, std_ratios, 1.0, "std ratio (dotted: uniform)"),
    }


def table(results: Results) -> list[dict[str, Any]]:
    """The numbers at the end, one row per arm."""
    return [
        {
            "arm": arm,
            "AP": final(results, arm, "AP"),
            "AP50": final(results, arm, "AP50"),
            "cost": 1000 * cost(results, arm),
            "relative": 100 * (cost(results, arm) / cost(results, "none") - 1),
            "fraction": 100 * results["seconds"]["arms"][arm]["terse_fraction"],
            "forwards": int(result["metrics"]["extra_forwards"]),
            "pasted": int(result["metrics"]["objects_pasted"]),
            "diversity": None if arm == "none" else diversity(results, arm),
            "neighbour_distance": result["measurements"][-1]["neighbour_distance"],
        }
        for arm, result in results["arms"].items()
    ]


def stages(arm: ArmResult) -> list[dict[str, Any]]:
    """Composites of the first, a middle and the last measurement."""
    moments = sorted(arm.pairs)
    chosen = dict.fromkeys([moments[0], moments[(len(moments) - 1) // 2], moments[-1]])
    titles = ["Early", "Half way", "At the end"] if len(chosen) == 3 else ["Composites"] * len(chosen)
    return [
        {"title": title, "iteration": moment, "pairs": arm.pairs[moment]}
        for title, moment in zip(titles, chosen, strict=True)
    ]


def image_uri(image: ScoredImage) -> str:
    """An image as a data URI; the template draws its boxes over it, so that they stay sharp at any size."""
    done, encoded = cv2.imencode(".jpg", image.pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        raise ValueError(f"expected pixels uint8 [H, W, 3], got {image.pixels.dtype} {list(image.pixels.shape)}")
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def labels(image: ScoredImage) -> list[tuple[float, float, ScoredObject]]:
    """Where the text of each object starts, x and y of its base line, without overlap where there is room.

    In composites pasted objects are labelled; in other images all objects.
    """
    height, width = image.pixels.shape[:2]
    placed: list[tuple[float, float, ScoredObject]] = []
    for seen in image.objects:
        if image.pasted_scores and not seen.pasted:
            continue
        left, top, right, bottom = seen.box
        candidates = [
            (min(max(x, 0.0), width - _LABEL_WIDTH), y)
            for y in (top - 2, bottom + _LABEL_HEIGHT - 1, bottom - 2, top + _LABEL_HEIGHT)
            for x in (left, right - _LABEL_WIDTH)
            if _LABEL_HEIGHT <= y <= height
        ]
        free = (place for place in candidates if not any(_collide(place, other) for other in placed))
        x, y = next(free, candidates[0])
        placed.append((x, y, seen))
    return placed


def _collide(one: tuple[float, float], other: tuple[float, float, ScoredObject]) -> bool:
    return abs(one[0] - other[0]) < _LABEL_WIDTH and abs(one[1] - other[1]) < _LABEL_HEIGHT


def _curve(arm: Mapping[str, Any], value: Any) -> Sequence[tuple[float, float]]:
    return [(one["iteration"], value(one)) for one in arm["measurements"]]
