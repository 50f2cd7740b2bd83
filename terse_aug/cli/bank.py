"""`terse-aug bank build|info|report`: build a bank of foregrounds, list or show what is in one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from terse_aug.bank import ForegroundBank
from terse_aug.bank.analysis import bank_statistics, render_report
from terse_aug.bank.analysis.page import by_count
from terse_aug.cli import sources
from terse_aug.cli.output import HTML, checked_output, progress_bar, write_whole
from terse_aug.viz.text import printable


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `bank` to the commands."""
    bank = subparsers.add_parser("bank", help="build a bank of foregrounds, or inspect one")
    actions = bank.add_subparsers(title="actions", dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="extract foregrounds from annotated images")
    sources.add_parsers(build.add_subparsers(title="sources", dest="source", required=True, metavar="SOURCE"))
    info = actions.add_parser("info", help="print what is in a bank")
    info.add_argument("bank", type=Path, help="the bank file")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=_info)
    report = actions.add_parser("report", help="write an HTML report: classes, sizes, shapes, positions, duplicates")
    report.add_argument("bank", type=Path, help="the bank file")
    report.add_argument("--out", type=Path, required=True, metavar="HTML", help="the page to write")
    samples = "foregrounds shown per class, at most 2,000 in all (default: %(default)s)"
    report.add_argument("--samples", type=int, default=8, metavar="N", help=samples)
    report.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    report.set_defaults(run=_report)


def _info(arguments: argparse.Namespace) -> int:
    with ForegroundBank.open(arguments.bank) as bank:
        info = bank.info()
    text = json.dumps(info, indent=2, ensure_ascii=False) if arguments.json else _info_text(info)
    print(text.encode("utf-8", "backslashreplace").decode("utf-8"))  # in JSON, that is the text itself
    return 0


def _report(arguments: argparse.Namespace) -> int:
    out = checked_output("--out", arguments.out, HTML)
    with ForegroundBank.open(arguments.bank) as bank, progress_bar() as report_progress:
        statistics = bank_statistics(bank, samples=arguments.samples, seed=arguments.seed, progress=report_progress)
    page = render_report(statistics).encode("utf-8")
    write_whole(out, page)
    groups = statistics.near_duplicates.groups
    print(
        printable(
            f"{out}: {len(statistics.sizes)} foregrounds of {len(statistics.classes)} classes, "
            f"{sum(map(len, groups))} of them in {len(groups)} groups of near duplicates; {len(page) / 1e6:.1f} MB"
        )
    )
    return 0


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
    for what in ("repaired", "rejected"):
        if counts := by_count(info["built"].get(what)):
            lines.append(f"{what} when it was built")
            lines += [f"{count:>8}  {reason}" for reason, count in counts]
    return "\n".join(map(printable, lines))
