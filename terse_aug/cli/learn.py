"""``terse-aug learn``: models that cut out foregrounds or generate them."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

COMMANDS = ("learn_cutter", "learn_branch")
"""Modules of this package, each with ``add_parsers(subparsers)``."""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    parser = subparsers.add_parser("learn", help="learn to cut out foregrounds, or to generate them")
    commands = parser.add_subparsers(title="commands", dest="learn_command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"terse_aug.cli.{name}").add_parsers(commands)
