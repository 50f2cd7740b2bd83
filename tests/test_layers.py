"""The architecture: no import upwards, no private name of another room, no function, class or file too long."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE, INTEGRATIONS = ROOT / "terse_aug", ROOT / "integrations"

FLOORS = (
    {"_version", "utils"},
    {"structures", "transforms"},
    {"config", "models", "viz"},
    {"bank", "samplers"},
    {"discovery"},
    {"generators"},
    {"compositing"},
    {"data"},
    {"policies"},
    {"training"},
    {"composer"},
    {"batch_composer"},
    {"terse"},
    {"preview", "evaluation"},
    {"export"},
    {"lockstep", "cli", "integration", "where_to_compose", "hook_presence"},
    {"__main__"},
)
"""Rooms of ``terse_aug`` from the ground up. A module imports from its own room and from lower floors only."""
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

LONGEST_FUNCTION, LONGEST_CLASS, LONGEST_FILE = 60, 250, 350


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def modules() -> list[Path]:
    return sorted(chain(CORE.rglob("*.py"), INTEGRATIONS.rglob("*.py")))


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    """Room of a module, or the package of an integration."""
    base = CORE if path.is_relative_to(CORE) else INTEGRATIONS
    return path.relative_to(base).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Module and name of what a module imports of terse-aug, anywhere in it; the name is empty for a whole module."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "terse_aug")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place(path)} has a relative import"
            module = node.module or ""
            if module.split(".")[0] == "terse_aug":
                yield from ((module, alias.name) for alias in node.names)


def imported_room(module: str, name: str) -> str:
    """Room that an import is from; empty for names of ``terse_aug`` itself."""
    parts = [*module.split("."), name]
    return parts[1] if parts[1] in FLOOR_OF else ""


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("room", sorted(FLOOR_OF))
def test_a_room_imports_from_lower_floors_only(room: str) -> None:
    upwards = [
        f"{place(path)} imports {module} {name}".strip()
        for path in CORE.rglob("*.py")
        if path.name != "__init__.py" or path.parent != CORE
        if room_of(path) == room
        for module, name in imports(path)
        for other in [imported_room(module, name)]
        if other != room and not (other and FLOOR_OF[other] < FLOOR_OF[room])
    ]
    assert not upwards, "\n".join(upwards)


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in CORE.rglob("*.py")} - {"__init__"} == FLOOR_OF.keys()


def test_no_private_name_is_imported_from_another_room() -> None:
    found = {
        f"{place(path)} imports {module} {name}"
        for path in modules()
        for module, name in imports(path)
        if any(map(private, [*module.split("."), name])) and module != "terse_aug._version"
        if not path.is_relative_to(CORE) or imported_room(module, name) != room_of(path)
    }
    assert not found, "\n".join(found)


def attributes(path: Path) -> Iterator[tuple[str, str, bool]]:
    """Private attributes of a module, each with its place and whether it is one of ``self``."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Attribute) and private(node.attr):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            parent = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "super"
            yield node.attr, f"{place(path)}:{node.lineno}", own or parent


def test_no_private_attribute_of_another_rooms_objects_is_used() -> None:
    """Of attributes that a room of the core sets or defines, and the room that uses them does not."""
    defined: dict[str, set[str]] = defaultdict(set)
    for path in modules():
        names = {name for name, _, own in attributes(path) if own}
        names |= {
            node.name
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and private(node.name)
        }
        defined[room_of(path)] |= names
    found = [
        f"{where} uses {name}"
        for path in modules()
        for name, where, own in attributes(path)
        if not own and name not in defined[room_of(path)]
        if any(name in defined[room] for room in FLOOR_OF)
    ]
    assert not found, "\n".join(found)


def too_long() -> Iterator[tuple[str, int]]:
    """Place and lines of what is longer than allowed."""
    for path in modules():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONGEST_FILE:
            yield place(path), lines
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                limit = LONGEST_CLASS if isinstance(node, ast.ClassDef) else LONGEST_FUNCTION
                own = (node.end_lineno or node.lineno) - node.lineno + 1
                if own > limit:
                    yield f"{place(path)}::{node.name}", own


def test_no_function_class_or_file_is_too_long() -> None:
    found = dict(too_long())
    assert not found, "\n".join(
        f"{name}: {lines} lines; at most {LONGEST_FUNCTION} for a function, {LONGEST_CLASS} for a class, "
        f"{LONGEST_FILE} for a file"
        for name, lines in found.items()
    )
