"""``terse-aug learn samples`` and ``learn branch``: what is annotated of a generator, and what learns from it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from terse_aug.cli.flags import add_flags, with_flags
from terse_aug.cli.output import checked_output, progress_bar
from terse_aug.generators import (
    BranchSettings,
    SampleKey,
    Truncation,
    learn_branch,
    load_generator,
    read_annotated,
    write_samples,
)
from terse_aug.generators.latents import TRUNCATION_METHODS
from terse_aug.generators.load import ADAPTERS, class_numbers
from terse_aug.generators.samples import read_folder

_GENERATOR = "layered:FILE, biggan:FOLDER, vqgan:FOLDER, or MODULE:FUNCTION of your own that returns one"
_DEVICE = "to render on, such as cuda (default: a GPU if there is one)"


def add_parsers(commands: argparse._SubParsersAction[Any]) -> None:
    """Add both to the actions of ``terse-aug learn``."""
    _add_samples(commands.add_parser("samples", help="render samples of a generator, to be annotated"))
    _add_branch(commands.add_parser("branch", help="learn to segment a generator's images from annotated samples"))


def _add_samples(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--generator", required=True, metavar="NAME", help=_GENERATOR)
    add(
        "--out", type=Path, required=True, metavar="DIR", help="new folder to write; draw NAME_mask.png beside NAME.png"
    )
    classes = "classes to render, by name or number (default: all, if there are no more than 20)"
    add("--category", nargs="+", default=[], metavar="NAME", help=classes)
    chosen = parser.add_mutually_exclusive_group()
    count = "samples to render of each class, from number 0 on (default: %(default)s)"
    chosen.add_argument("--count", type=int, default=10, metavar="N", help=count)
    chosen.add_argument("--numbers", type=int, nargs="+", metavar="N", help="numbers of the samples of each class")
    add("--seed", type=int, default=0, metavar="N", help="of all samples (default: %(default)s)")
    value, method = Truncation()
    by = "keeps latents near the mean, above 0; 1 for whole noise (default: %(default)s)"
    add("--truncation", type=float, default=value, metavar="VALUE", help=by)
    meaning = "times normal noise, or normal noise truncated at 2 deviations (default: %(default)s)"
    add("--truncation-method", choices=TRUNCATION_METHODS, default=method, help=meaning)
    add("--device", metavar="NAME", help=_DEVICE)
    parser.set_defaults(run=_samples)


def _add_branch(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--samples", type=Path, required=True, metavar="DIR", help="folder of learn samples, with masks added")
    add("--out", type=Path, required=True, metavar="FILE", help="the branch to write, NAME.pt; a stopped run resumes")
    add(
        "--generator",
        metavar="NAME",
        help=f"{_GENERATOR} (default: as recorded with the samples, but for MODULE:FUNCTION)",
    )
    add("--device", metavar="NAME", help=_DEVICE)
    add_flags(parser.add_argument_group("how it is learned"), BranchSettings())
    parser.set_defaults(run=_branch)


def _samples(arguments: argparse.Namespace) -> int:
    truncation = Truncation(arguments.truncation, arguments.truncation_method).checked()
    numbers = range(arguments.count) if arguments.numbers is None else sorted(set(arguments.numbers))
    if not numbers or min(numbers) < 0:
        raise ValueError("--count, --numbers: expected at least one sample, and numbers from 0 on")
    generator = load_generator(arguments.generator, arguments.device)
    if not arguments.category and len(generator.class_names) > 20:
        raise ValueError(f"--category: choose classes; the generator has {len(generator.class_names)}")
    whole = list(range(len(generator.class_names)))
    classes = class_numbers(generator, arguments.category) if arguments.category else whole
    keys = [SampleKey(own, number, arguments.seed, truncation) for own in classes for number in numbers]
    with progress_bar() as show:
        write_samples(generator, arguments.generator, keys, arguments.out, lambda *at: show("rendering", *at))
    print(f"{arguments.out}: {len(keys)} samples. Draw a mask for each, NAME_mask.png beside NAME.png: white object, ")
    print("black background. Then: terse-aug learn branch --samples", arguments.out, "--out branch.pt")
    return 0


def _recorded_generator(folder: Path) -> str:
    """What ``samples.json`` names, unless it is code: a folder of data decides about files alone."""
    recorded = read_folder(folder).generator
    if recorded.partition(":")[0] not in ADAPTERS:
        raise ValueError(f"--generator: the samples were rendered by {recorded!r}, code of your own; name it here")
    return recorded


def _branch(arguments: argparse.Namespace) -> int:
    settings = with_flags(BranchSettings(), arguments)
    out = checked_output("--out", arguments.out, (".pt",))
    generator = load_generator(arguments.generator or _recorded_generator(arguments.samples), arguments.device)
    with progress_bar() as show:
        found = read_annotated(arguments.samples, generator, lambda *at: show("comparing", *at))
        for name, reason in found.left_out.items():
            print(f"left out: {name}: {reason}")
        print(f"{len(found.samples)} annotated samples; {found.without_mask} without a mask")
        partial = out.with_name(f".{out.name}.partial")
        branch = learn_branch(generator, found.samples, settings, partial, lambda *at: show("learning", *at))
    branch.save(out)
    print(f"{out}: {len(branch.heads)} heads for {branch.record['generator']}")
    return 0
