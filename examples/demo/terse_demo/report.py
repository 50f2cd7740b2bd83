"""Writes the report: one HTML file that needs nothing else, from the figures and pictures of a run."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2
from markupsafe import Markup

from terse_aug import PARAMETERS
from terse_demo import wording
from terse_demo.charts import Series, bar_chart, line_chart
from terse_demo.data import CLASSES
from terse_demo.measurement import SeenImage, SeenObject
from terse_demo.results import Results, cost, diversity, final
from terse_demo.training import ArmResult

NAMES = {"none": "no pasting", "random": "random", "adversarial": "adversarial"}
"""How the arms are called in the report."""

_JPEG_QUALITY = 93
_LABEL_WIDTH, _LABEL_HEIGHT = 40.0, 9.0
"""What the text "0: 0.00" takes in a picture, px of the image."""


def render(results: Results, arms: Mapping[str, ArmResult]) -> str:
    """The report as HTML.

    Args:
        results: of the run; all figures in the report come from here.
        arms: for the pictures.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(picture=picture, labels=labels, classes=CLASSES, names=NAMES)
    return environment.get_template("report.html.jinja").render(
        results=results,
        headline=wording.headline(results),
        paragraphs=wording.paragraphs(results),
        charts=charts(results),
        rows=table(results),
        stages=stages(arms["adversarial"]),
        tests={name: arm.tests for name, arm in arms.items()},
    )


def charts(results: Results) -> dict[str, Markup]:
    """The charts by name."""
    arms = results["arms"]
    precision = [
        Series(NAMES[arm], arm, _curve(figures, lambda one: one["average_precision"]["AP"]))
        for arm, figures in arms.items()
    ]
    missed = [
        Series(policy, policy, _curve(arms["adversarial"], lambda one, policy=policy: one["missed"][policy]))
        for policy in ("random", "adversarial")
    ]
    spreads = [
        Series(arm, arm, list(enumerate(arms[arm]["measurements"][-1]["spread"][name] for name in PARAMETERS)))
        for arm in ("random", "adversarial")
    ]
    last = arms["adversarial"]["measurements"][-1]["hardness"]
    hardness = [Series(policy, policy, list(enumerate(last[policy]))) for policy in ("random", "adversarial")]
    fifths = ["0 to 0.2", "0.2 to 0.4", "0.4 to 0.6", "0.6 to 0.8", "0.8 to 1"]
    parameters = [name.replace("_", " ") for name in PARAMETERS]
    return {
        "precision": Markup(line_chart(precision, "Average precision of the arms", "iterations", "AP")),
        "missed": Markup(line_chart(missed, "Share of pasted objects missed", "iterations", "% missed")),
        "hardness": Markup(bar_chart(fifths, hardness, "Hardness of the pasted objects", (20.0, "20 %"))),
        "spread": Markup(bar_chart(parameters, spreads, "Spread of the transforms", (1.0, "uniform = 1"))),
    }


def table(results: Results) -> list[dict[str, Any]]:
    """The figures at the end, one row per arm."""
    return [
        {
            "arm": arm,
            "AP": final(results, arm, "AP"),
            "AP50": final(results, arm, "AP50"),
            "cost": 1000 * cost(results, arm),
            "relative": 100 * (cost(results, arm) / cost(results, "none") - 1),
            "share": 100 * results["seconds"]["arms"][arm]["terse_share"],
            "forwards": int(figures["metrics"]["extra_forwards"]),
            "pasted": int(figures["metrics"]["objects_pasted"]),
            "diversity": None if arm == "none" else diversity(results, arm),
            "neighbour": figures["measurements"][-1]["neighbour"],
        }
        for arm, figures in results["arms"].items()
    ]


def stages(arm: ArmResult) -> list[dict[str, Any]]:
    """Composites of the first, a middle and the last measurement."""
    moments = sorted(arm.pairs)
    chosen = dict.fromkeys([moments[0], moments[(len(moments) - 1) // 2], moments[-1]])
    titles = ["At the start", "Half way", "At the end"] if len(chosen) == 3 else ["Composites"] * len(chosen)
    return [
        {"title": title, "iteration": moment, "pairs": arm.pairs[moment]}
        for title, moment in zip(titles, chosen, strict=True)
    ]


def picture(image: SeenImage) -> Markup:
    """An image as a data URI; its boxes are drawn over it by the template, and so stay sharp at any size."""
    done, encoded = cv2.imencode(".jpg", image.pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        raise ValueError(f"expected pixels uint8 [H, W, 3], got {image.pixels.dtype} {list(image.pixels.shape)}")
    return Markup("data:image/jpeg;base64,") + base64.b64encode(encoded.tobytes()).decode()


def labels(image: SeenImage) -> list[tuple[float, float, SeenObject]]:
    """Where the text of each object starts, x and y of its base line; clear of the other texts where there is room.

    Composites name what was pasted; other images all their objects.
    """
    height, width = image.pixels.shape[:2]
    placed: list[tuple[float, float, SeenObject]] = []
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


def _collide(one: tuple[float, float], other: tuple[float, float, SeenObject]) -> bool:
    return abs(one[0] - other[0]) < _LABEL_WIDTH and abs(one[1] - other[1]) < _LABEL_HEIGHT


def _curve(figures: Mapping[str, Any], value: Any) -> Sequence[tuple[float, float]]:
    return [(one["iteration"], value(one)) for one in figures["measurements"]]
