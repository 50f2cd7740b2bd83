"""``terse-aug compose``: composites with corrected labels on disk, for trainers elsewhere."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from terse_aug.bank import ForegroundBank
from terse_aug.cli.flags import add_flags, with_flags
from terse_aug.cli.output import progress_bar
from terse_aug.cli.preview import add_composing_flags, add_data_flags, composing_terse
from terse_aug.export import ExportSettings, write_composites

_IMAGES_WITH_BOXES = 512
"""From which a policy that needs real boxes gets them, without a saved state."""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add ``compose`` to the commands."""
    parser = subparsers.add_parser("compose", help="write composites with corrected labels, as COCO or YOLO data sets")
    add_data_flags(parser)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="new folder to write; a run that was stopped resumes")
    validation = "folder of validation images, for YOLO's data.yaml, which trainers want there"
    add("--val", type=Path, metavar="DIR", help=validation)
    add("--jobs", type=int, metavar="N", help="processes (default: one for each core, at most 8, for longer runs)")
    add_flags(parser.add_argument_group("what is written"), ExportSettings())
    add_composing_flags(parser)
    parser.set_defaults(run=_compose)


def _compose(arguments: argparse.Namespace) -> int:
    export = with_flags(ExportSettings(), arguments)
    with ForegroundBank.open(arguments.bank) as bank, progress_bar() as show:
        terse, _, data = composing_terse(arguments, bank, _IMAGES_WITH_BOXES)
        if terse.policy.state_dict() and not terse.policy.uses_boxes and arguments.state is None:
            raise ValueError("--policy: it has learned nothing yet; give its --state, or use random or matched")
        started = time.perf_counter()
        report = write_composites(
            terse,
            data,
            arguments.out,
            export,
            image_size=arguments.image_size,
            validation=arguments.val,
            jobs=arguments.jobs,
            progress=lambda done, total: show("composing", done, total),
        )
        seconds = time.perf_counter() - started
    print(report.summary())
    if composed := report.images - report.resumed:
        print(f"{seconds:.1f} s, {composed / seconds:.1f} images per second")
    return 0
