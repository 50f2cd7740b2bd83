"""Generators by the text that names them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from terse_aug.generators.biggan import BigGANGenerator
from terse_aug.generators.layered import LayeredFeatures
from terse_aug.generators.protocol import FeatureGenerator, check_generator
from terse_aug.generators.vqgan import VQGANGenerator

ADAPTERS: dict[str, Callable[[str, str], FeatureGenerator]] = {
    "layered": LayeredFeatures.load,
    "biggan": BigGANGenerator,
    "vqgan": VQGANGenerator,
}
"""By kind; they are called with a path and a device."""


def load_generator(spec: str, device: str | None = None) -> FeatureGenerator:
    """Load a generator.

    Args:
        spec: ``layered:FILE``, ``biggan:FOLDER``, ``vqgan:FOLDER``, or ``module:factory`` of the user's own, a function
            without arguments that returns a :class:`FeatureGenerator`.
        device: to render on; by default a GPU if there is one. A factory of the user's chooses for itself.

    Raises:
        FileNotFoundError: a file is missing.
        MissingPackageError: a package is not installed.
        ValueError: the text names no generator, its files cannot be used, or what a factory returns lacks a method.
    """
    kind, _, place = spec.partition(":")
    if kind in ADAPTERS and place:
        return ADAPTERS[kind](place, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    factory = imported(spec, "generator")
    try:
        made = factory()
    except Exception as error:  # whatever a user's function raises
        raise ValueError(f"generator {spec}: {type(error).__name__}: {error}") from error
    return check_generator(made, spec)


def imported(spec: str, what: str) -> Callable[..., Any]:
    """The function that ``module:function`` names; modules of the working directory can be imported.

    Raises:
        ValueError: there is none.
    """
    module, _, name = spec.partition(":")
    if not module or not name:
        kinds = ", ".join(f"{kind}:PATH" for kind in ADAPTERS) + ", " if what == "generator" else ""
        raise ValueError(f"{what}: expected {kinds}MODULE:FUNCTION, got {spec!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever a user's module raises
        raise ValueError(f"{what} {spec}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ValueError(f"{what} {spec}: expected a function, got {type(found).__name__}")
    function: Callable[..., Any] = found
    return function


def class_numbers(generator: FeatureGenerator, classes: Sequence[str]) -> list[int]:
    """Numbers of classes that are given by name or number, in this order, each once.

    Raises:
        ValueError: there is no such class, or several of its name.
    """
    names, found = list(generator.class_names), dict[int, None]()
    for own in classes:
        numbers = [number for number, name in enumerate(names) if name == own]
        if not numbers and own.isdecimal() and int(own) < len(names):
            numbers = [int(own)]
        if len(numbers) != 1:
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            known = f"use one of its numbers {numbers}" if numbers else f"it has {shown}"
            raise ValueError(f"{generator.name}: expected one class {own!r}, got {len(numbers)}; {known}")
        found[numbers[0]] = None
    return list(found)
