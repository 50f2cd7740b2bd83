"""The ``terse-aug`` command, one module for each sub-command.

A command is a module here with ``add_parser(subparsers)``, which sets the default ``run`` of its parser to a function
``run(arguments) -> int``. To add one, add its name to :data:`COMMANDS`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

COMMANDS = ("bank", "preview", "compose", "learn")

_USER_ERROR = 2
_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Reports a usage error in one line, as all errors of this command are reported."""

    def error(self, message: str) -> NoReturn:
        self.exit(_USER_ERROR, f"error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        The exit code: 0, also if the reader of stdout has stopped, such as ``head``; 2 for a user error, which is one
        line on stderr; 130 on Ctrl-C.
    """
    code = 0
    try:
        code = _exit_code(sys.argv[1:] if argv is None else argv)
        print(end="", flush=True)
    except BrokenPipeError:
        with open(os.devnull, "w") as nothing:  # for what is left in the buffer, which Python writes at its end
            os.dup2(nothing.fileno(), sys.stdout.fileno())
    return code


def _exit_code(given: Sequence[str]) -> int:
    """Of a command; raises BrokenPipeError if the reader of stdout has stopped."""
    try:
        arguments = _parser(given[:1]).parse_args(given)
    except SystemExit as end:  # raised by argparse, for --help and errors alike
        return int(end.code or 0)
    try:
        return int(arguments.run(arguments))
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            print(flush=True)  # fails as well, unless it was another pipe
        print(f"error: {error}", file=sys.stderr)
        return _USER_ERROR
    except KeyboardInterrupt as stop:
        out = getattr(arguments, "out", None)
        kept = f"{out} is as it was" if out is not None and out.exists() else "nothing was written"
        print(stop.args[0] if stop.args else f"interrupted; {kept}", file=sys.stderr)
        return _INTERRUPTED


def _parser(command: Sequence[str]) -> argparse.ArgumentParser:
    """A parser of the given command alone, as importing the others may take seconds; of all if it is none of them."""
    parser = _Parser(prog="terse-aug", description="Learned copy-paste augmentation for object detectors.")
    subparsers = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for name in [name for name in COMMANDS if name in command] or COMMANDS:
        importlib.import_module(f"terse_aug.cli.{name}").add_parser(subparsers)
    return parser
