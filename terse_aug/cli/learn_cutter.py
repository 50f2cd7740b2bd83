"""``terse-aug learn cutter`` and ``terse-aug learn report``: cut out foregrounds without masks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from terse_aug.cli.flags import add_flags, with_flags
from terse_aug.cli.output import HTML, checked_output, progress_bar
from terse_aug.discovery.agreement import agreement, masked_images
from terse_aug.discovery.cutter import Cutter
from terse_aug.discovery.learn import learn_cutter
from terse_aug.discovery.report import render_cutter_report
from terse_aug.discovery.run_folder import CHECKPOINT, CUTTER
from terse_aug.discovery.settings import PRESETS
from terse_aug.utils.files import write_whole
from terse_aug.viz.text import printable


def add_parsers(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the commands to ``learn``."""
    learn = subparsers.add_parser("cutter", help="learn to cut out foregrounds from photographs without masks")
    add = learn.add_argument
    add("--images", type=Path, required=True, metavar="DIR", help="photographs that each show one object")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the run; a run that was stopped resumes")
    add("--preset", choices=tuple(PRESETS), default="cpu-64", help="of the settings below (default: %(default)s)")
    add("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    add("--device", default="cpu", help="for example cuda (default: %(default)s)")
    add_flags(learn.add_argument_group("settings; defaults are those of cpu-64"), PRESETS["cpu-64"])
    learn.set_defaults(run=_learn)
    report = subparsers.add_parser("report", help="write an HTML report of a run of learn cutter")
    report.add_argument("run_folder", type=Path, metavar="RUN", help="folder of the run")
    report.add_argument("--out", type=Path, required=True, metavar="HTML", help="the page to write")
    report.add_argument("--images", type=Path, metavar="DIR", help="photographs with masks, for measuring the IoU")
    report.add_argument("--masks", type=Path, metavar="DIR", help="their masks, of the same names, 255 for foreground")
    ignored = "of pixels of the masks that are not counted, as 128 in trimaps"
    report.add_argument("--ignored-value", type=int, metavar="VALUE", help=ignored)
    report.set_defaults(run=_report)


def _learn(arguments: argparse.Namespace) -> int:
    settings = with_flags(PRESETS[arguments.preset], arguments)
    try:
        torch.empty(1, device=arguments.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {arguments.device}: {str(error).splitlines()[0]}") from error
    try:
        with progress_bar() as show:
            cutter = learn_cutter(
                arguments.images,
                settings,
                out=arguments.out,
                seed=arguments.seed,
                device=arguments.device,
                progress=show,
            )
    except KeyboardInterrupt:
        resumes = (arguments.out / CHECKPOINT).exists()
        kept = f"the same command resumes from {arguments.out / CHECKPOINT}" if resumes else "nothing was learned yet"
        raise KeyboardInterrupt(f"interrupted; {kept}") from None
    print(printable(f"{arguments.out / CUTTER}: fingerprint {cutter.fingerprint}"))
    if cutter.collapsed:
        print(f"collapsed: {', '.join(cutter.collapsed)}; see terse-aug learn report {arguments.out} --out report.html")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    out = checked_output("--out", arguments.out, HTML)
    if (arguments.images is None) != (arguments.masks is None):
        raise ValueError("--images and --masks: give both, or none")
    measured = None
    if arguments.masks is not None:
        cutter = Cutter.load(arguments.run_folder / CUTTER)
        measured = agreement(cutter.cut, masked_images(arguments.images, arguments.masks, arguments.ignored_value))
    page = render_cutter_report(arguments.run_folder, measured).encode("utf-8")
    write_whole(out, page)
    found = "" if measured is None else f"; IoU {measured.pooled:.3f} pooled, {measured.per_image:.3f} per image"
    print(printable(f"{out}: {len(page) / 1e6:.1f} MB{found}"))
    return 0
