"""Imports modules of the examples as a script of their folder sees them, and unloads them afterwards."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


@contextmanager
def importable(folder: Path, *names: str) -> Iterator[None]:
    """Put a folder on the path; modules and packages of these names that were imported meanwhile are unloaded.

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


def load_script(path: Path, name: str) -> ModuleType:
    """A script, imported under a name of its own; :func:`importable` unloads it if it is given that name."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def modules_of(package: str, *names: str, **more: Any) -> SimpleNamespace:
    """Modules of a package by name, and other attributes."""
    return SimpleNamespace(**{name: importlib.import_module(f"{package}.{name}") for name in names}, **more)
