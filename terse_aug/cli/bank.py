"""`terse-aug bank build|info`: build a bank of cut-outs, say what is in one. Imports the bank."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from terse_aug.bank import ForegroundBank
from terse_aug.cli import sources


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `bank` to the commands."""
    bank = subparsers.add_parser("bank", help="build a bank of cut-out objects, or look into one")
    actions = bank.add_subparsers(title="actions", dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="cut objects out of annotated images")
    sources.add_parsers(build.add_subparsers(title="sources", dest="source", required=True, metavar="SOURCE"))
    info = actions.add_parser("info", help="say what is in a bank")
    info.add_argument("bank", type=Path, help="the bank file")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=_info)


def _info(arguments: argparse.Namespace) -> int:
    with ForegroundBank.open(arguments.bank) as bank:
        info = bank.info()
    print(json.dumps(info, indent=2, ensure_ascii=False) if arguments.json else _info_text(info))
    return 0


def _info_text(info: dict[str, Any]) -> str:
    lines = [
        f"{info['path']}: {info['cut_outs']} cut-outs, {info['bytes'] / 1e6:.1f} MB, "
        f"format version {info['format_version']}",
        f"fingerprint {info['fingerprint']}",
    ]
    for measure in ("height_px", "width_px", "extent"):
        numbers = ", ".join(f"{name} {value:g}" for name, value in info[measure].items())
        lines.append(f"{measure.replace('_', ' in '):<13} {numbers}")
    if info["keypoint_names"]:
        lines.append(f"keypoints     {', '.join(info['keypoint_names'])}")
    lines.append("cut-outs per category")
    lines += [f"{count:>8}  {name}" for name, count in info["cut_outs_per_category"].items()]
    for what in ("mended", "dropped"):
        if counts := info["built"].get(what):
            lines.append(f"{what} when it was built")
            lines += [f"{count:>8}  {reason}" for reason, count in counts.items()]
    return "\n".join(lines)
