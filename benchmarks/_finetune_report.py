"""The report of :mod:`benchmarks.finetune`: means, paired differences to ``random``, sample efficiency."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

MEASURES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
COSTS = ("extra forwards", "CPU seconds")
Pair = tuple[int, int]
Runs = Mapping[tuple[str, str], Mapping[Pair, Mapping[str, Any]]]
"""By settings and arm, by baseline and seed, the results. Of arms without settings these are empty."""


def summarise(runs: Runs, baselines: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each settings and arm; differences are those to ``random`` with the same settings and pair."""
    rows = []
    for settings in dict.fromkeys(own for own, _ in runs if own):
        arms = [arm for own, arm in runs if own in (settings, "")]
        random = runs.get((settings, "random"), {})
        for arm in dict.fromkeys(arms):
            own = runs.get((settings, arm)) or runs[("", arm)]
            row: dict[str, Any] = {"settings": settings, "arm": arm, "pairs": [list(pair) for pair in sorted(own)]}
            for name in (*MEASURES, *COSTS):
                row[name] = _mean([result[name] for result in own.values()])
            both = sorted(own.keys() & random.keys())
            row["minus random"] = {name: _differences(own, random, both, name) for name in MEASURES}
            right = runs.get(("right", "random"), {})
            if settings != "right" and right:
                pairs = sorted(own.keys() & right.keys())
                row["minus random, right"] = _differences(own, right, pairs, "AP")
            row["iterations to random's AP"] = _reaches(own, random, baselines, both)
            rows.append(row)
    return rows


def noise(runs: Runs) -> dict[str, Any]:
    """By settings: the spread of differences between runs that differ in the seed of pasting alone, and how many pairs
    a difference of 0.5 AP takes to be twice its standard error."""
    found = {}
    for (settings, arm), own in runs.items():
        random = runs.get((settings, "random"), {})
        if arm == "random-again" and len(pairs := sorted(own.keys() & random.keys())) > 1:
            differences = [own[pair]["AP"] - random[pair]["AP"] for pair in pairs]
            # Their expectation is known: 0.
            deviation = math.sqrt(statistics.fmean(value**2 for value in differences))
            found[settings] = {
                "differences": [round(value, 2) for value in differences],
                "standard deviation": round(deviation, 2),
                "pairs for 0.5 AP": math.ceil((2 * deviation / 0.5) ** 2),
            }
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.fmean(known), 2) if known else None


def _differences(
    own: Mapping[Pair, Mapping[str, Any]], other: Mapping[Pair, Mapping[str, Any]], pairs: Sequence[Pair], name: str
) -> dict[str, Any]:
    values = [
        own[pair][name] - other[pair][name]
        for pair in pairs
        if own[pair][name] is not None and other[pair][name] is not None
    ]
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {
        "mean": _mean(values),
        "standard error": None if error is None else round(error, 2),
        "pairs": [round(value, 2) for value in values],
    }


def _reaches(
    own: Mapping[Pair, Mapping[str, Any]],
    random: Mapping[Pair, Mapping[str, Any]],
    baselines: Mapping[int, Mapping[str, Any]],
    pairs: Sequence[Pair],
) -> float | None:
    """Iterations until the mean AP of an arm reaches the final one of ``random``, by straight lines between points."""
    if not pairs:
        return None
    wanted = statistics.fmean(random[pair]["AP"] for pair in pairs)
    start = statistics.fmean(baselines[baseline]["AP"] for baseline, _ in pairs)
    before = (0, start)
    for place, point in enumerate(own[pairs[0]]["curve"]):
        now = (point["iteration"], statistics.fmean(own[pair]["curve"][place]["AP"] for pair in pairs))
        if now[1] >= wanted:
            rise = now[1] - before[1]
            fraction = 1.0 if rise <= 0 else max(0.0, (wanted - before[1]) / rise)
            return round(before[0] + fraction * (now[0] - before[0]))
        before = now
    return None


def markdown(title: str, rows: Sequence[Mapping[str, Any]], noise: Mapping[str, Any], baselines: str) -> str:
    """The report as Markdown."""
    lines = [f"# {title}", "", baselines, ""]
    for settings in dict.fromkeys(row["settings"] for row in rows):
        lines += [f"## Settings: {settings}", ""]
        head = ["arm", "pairs", *MEASURES, "AP - random", "AP75 - random", "each pair", "to random's AP", *COSTS]
        lines += [_line(head), _line(["---"] * len(head))]
        for row in (row for row in rows if row["settings"] == settings):
            difference = row["minus random"]
            cells = [row["arm"], str(len(row["pairs"])), *(_number(row[name]) for name in MEASURES)]
            cells += [_with_error(difference[name]) for name in ("AP", "AP75")]
            cells += [" ".join(f"{value:+.1f}" for value in difference["AP"]["pairs"])]
            cells += [_number(row["iterations to random's AP"], 0), *(_number(row[name], 0) for name in COSTS)]
            lines.append(_line(cells))
        against = [row for row in rows if row["settings"] == settings and "minus random, right" in row]
        if against:
            text = ", ".join(f"{row['arm']} {_with_error(row['minus random, right'])}" for row in against)
            lines += ["", f"AP minus that of `random` with settings `right`: {text}."]
        if settings in noise:
            own = noise[settings]
            lines += [
                "",
                f"Noise of a pair (`random-again` minus `random`): standard deviation {own['standard deviation']} AP; "
                f"0.5 AP is twice its standard error with {own['pairs for 0.5 AP']} pairs.",
            ]
        lines.append("")
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _with_error(difference: Mapping[str, Any]) -> str:
    if difference["mean"] is None:
        return "-"
    error = difference["standard error"]
    return f"{difference['mean']:+.2f}" + ("" if error is None else f" ± {error:.2f}")
