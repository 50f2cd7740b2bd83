"""`terse-aug bank build|merge|info|report`: build a bank of foregrounds, merge some, list or show what is in one."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from terse_aug.bank import ForegroundBank, merge_banks
from terse_aug.bank.analysis import BankStatistics, bank_statistics, render_comparison, render_report
from terse_aug.bank.analysis.templates import by_count
from terse_aug.cli import sources
from terse_aug.cli.features import open_features
from terse_aug.cli.output import HTML, checked_output, progress_bar
from terse_aug.utils.files import write_whole
from terse_aug.viz.text import printable

_ORIGINS = (
    ("merged", "foregrounds", "bank", "foregrounds per bank that it was merged from"),
    ("parts", "image_count", "name", "images per folder that it was built from"),
)
"""Of lists under ``built``: keys of the number and the name of an entry, and what they are."""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `bank` to the commands."""
    bank = subparsers.add_parser("bank", help="build a bank of foregrounds, or inspect one")
    actions = bank.add_subparsers(title="actions", dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="extract foregrounds from annotated images")
    sources.add_parsers(build.add_subparsers(title="sources", dest="source", required=True, metavar="SOURCE"))
    merge = actions.add_parser("merge", help="merge banks into one; classes are joined by name")
    merge.add_argument("banks", type=Path, nargs="+", metavar="BANK", help="the bank files")
    merge.add_argument("--out", type=Path, required=True, metavar="FILE", help="the bank to write")
    merge.add_argument("--overwrite", action="store_true", help="replace an existing bank, but none of those to merge")
    merge.set_defaults(run=_merge)
    info = actions.add_parser("info", help="print what is in a bank")
    info.add_argument("bank", type=Path, help="the bank file")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=_info)
    report = actions.add_parser("report", help="write an HTML report: classes, sizes, shapes, positions, duplicates")
    report.add_argument("bank", type=Path, help="the bank file")
    report.add_argument("--out", type=Path, required=True, metavar="HTML", help="the page to write")
    report.add_argument("--compare", type=Path, metavar="BANK", help="show this bank beside the other one instead")
    features = "with --compare: also the FID in the features of this network, a TorchScript file or MODULE:FACTORY"
    report.add_argument("--features", metavar="NETWORK", help=features)
    size = "side of its images in pixels (default: 128)"
    report.add_argument("--feature-size", type=int, metavar="PX", help=size)
    samples = "foregrounds shown per class, at most 2,000 in all (default: %(default)s)"
    report.add_argument("--samples", type=int, default=8, metavar="N", help=samples)
    report.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    report.set_defaults(run=_report)


def _merge(arguments: argparse.Namespace) -> int:
    with progress_bar() as show:
        progress = partial(show, "merging")
        report = merge_banks(arguments.banks, arguments.out, overwrite=arguments.overwrite, progress=progress)
    print(report.summary())
    return 0


def _info(arguments: argparse.Namespace) -> int:
    with ForegroundBank.open(arguments.bank) as bank:
        info = bank.info()
    text = json.dumps(info, indent=2, ensure_ascii=False) if arguments.json else _info_text(info)
    print(text.encode("utf-8", "backslashreplace").decode("utf-8"))  # in JSON, that is the text itself
    return 0


def _report(arguments: argparse.Namespace) -> int:
    out = checked_output("--out", arguments.out, HTML)
    if arguments.compare is None and arguments.features is not None:
        raise ValueError("--features is for --compare: FID is a distance of two banks")
    if arguments.features is None and arguments.feature_size is not None:
        raise ValueError("--feature-size is for --features")
    options = {"samples": arguments.samples, "seed": arguments.seed}
    with ForegroundBank.open(arguments.bank) as bank, progress_bar() as report_progress:
        if arguments.compare is not None:
            page, text = _comparison(bank, arguments, progress=report_progress, **options)
        else:
            statistics = bank_statistics(bank, progress=report_progress, **options)
            page, text = render_report(statistics), _report_text(statistics)
    content = page.encode("utf-8")
    write_whole(out, content)
    print(printable(f"{out}: {text}; {len(content) / 1e6:.1f} MB"))
    return 0


def _report_text(statistics: BankStatistics) -> str:
    groups = statistics.near_duplicates.groups
    return (
        f"{len(statistics.sizes)} foregrounds of {len(statistics.classes)} classes, "
        f"{sum(map(len, groups))} of them in {len(groups)} groups of near duplicates"
    )


def _comparison(bank: ForegroundBank, arguments: argparse.Namespace, **options: Any) -> tuple[str, str]:
    """The page of two banks, and a line about it."""
    network = None if arguments.features is None else open_features(arguments.features)
    with ForegroundBank.open(arguments.compare) as other:
        distance = None
        if network is not None:
            from terse_aug.evaluation.feature_distance import feature_distance  # needs torch

            side = {} if arguments.feature_size is None else {"side": arguments.feature_size}
            shared = {"seed": options["seed"], "progress": options["progress"]}
            distance = feature_distance(bank, other, network, arguments.features, **side, **shared)
        page = render_comparison(bank_statistics(bank, **options), bank_statistics(other, **options), distance)
        text = f"{len(bank)} foregrounds beside {len(other)}"
    return page, text if distance is None else f"{text}, FID {distance.value:.4g} ({distance.network})"


def _info_text(info: dict[str, Any]) -> str:
    lines = [
        f"{info['path']}: {info['foregrounds']} foregrounds, {info['bytes'] / 1e6:.1f} MB, "
        f"format version {info['format_version']}",
        f"fingerprint {info['fingerprint']}",
    ]
    for key, title in (("height_px", "height in px"), ("width_px", "width in px"), ("relative_size", "relative size")):
        lines.append(f"{title:<13} " + ", ".join(f"{name} {value:g}" for name, value in info[key].items()))
    if info["keypoint_names"]:
        lines.append(f"keypoints     {', '.join(info['keypoint_names'])}")
    lines.append("foregrounds per category")
    lines += [f"{count:>8}  {name}" for name, count in info["foregrounds_per_category"].items()]
    for key, number, name, title in _ORIGINS:
        entries = info["built"].get(key)
        if isinstance(entries, list):
            own = [entry for entry in entries if isinstance(entry, dict)]
            lines += [title, *(f"{entry.get(number)!s:>8}  {entry.get(name)}" for entry in own)]
    for what in ("repaired", "rejected"):
        if counts := by_count(info["built"].get(what)):
            lines.append(f"{what} when it was built")
            lines += [f"{count:>8}  {reason}" for reason, count in counts]
    return "\n".join(map(printable, lines))
