"""Imports modules of the examples as a script of their folder sees them, and forgets them afterwards."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def importable(folder: Path, *names: str) -> Iterator[None]:
    """Put a folder on the path; modules and packages of these names that were imported meanwhile are forgotten.

    Several examples have modules of the same names, such as ``run``, and some put folders on the path themselves.
    """
    before, path = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = path
        for module in set(sys.modules) - before:
            if module.partition(".")[0] in names:
                del sys.modules[module]
