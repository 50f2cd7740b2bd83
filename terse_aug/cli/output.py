"""The progress bar and the output files of commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

HTML = (".html", ".htm")


def checked_output(flag: str, path: Path, suffixes: Sequence[str]) -> Path:
    """The path of an output file, checked before any work is done; its suffix guards against overwriting an input.

    Raises:
        ValueError: it has none of the suffixes, or its folder does not exist.
    """
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{flag}: expected a file name that ends in {suffixes[0]}, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"{flag}: there is no folder {path.parent}")
    return path


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr; nothing where that is not a terminal.

    Yields:
        A function to call with a description, the number of steps done, and their total.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)
