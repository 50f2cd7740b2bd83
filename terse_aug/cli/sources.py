"""The sources of `terse-aug bank build`: those of the package, and data sets of detection frameworks."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from terse_aug.bank import AnnotationOptions, BuildReport
from terse_aug.bank.readers import READERS
from terse_aug.cli.source_flags import add_source


def add_parsers(sources: argparse._SubParsersAction[Any]) -> None:
    """Add all sources."""
    for name, reader in READERS.items():
        summary = (reader.build.__doc__ or "").partition("\n")[0]
        parser = sources.add_parser(name, help=summary.removeprefix("Build a bank from ").rstrip("."))
        add_source(parser, reader.build, reader.options, reader.unused_rules)
    detectron2 = sources.add_parser("detectron2", help="data sets registered with Detectron2")
    add_source(detectron2, _build_from_detectron2, AnnotationOptions)
    mmdet = sources.add_parser("mmdet", help="the training data set of an MMDetection config")
    add_source(mmdet, _build_from_mmdet, AnnotationOptions)


def _build_from_detectron2(
    datasets: Sequence[str], out: Path, modules: Sequence[str] = (), **options: Any
) -> BuildReport:
    """Build a bank from data sets registered with Detectron2.

    Args:
        datasets: names of the data sets, as in cfg.DATASETS.TRAIN.
        out: the bank to write.
        modules: Python modules to import, which register them.
        options: see :class:`AnnotationOptions`.
    """
    report: BuildReport = _import("terse_aug_detectron2", modules).build_from_detectron2(datasets, out, **options)
    return report


def _build_from_mmdet(config: Path, out: Path, **options: Any) -> BuildReport:
    """Build a bank from the training data set of an MMDetection config.

    Args:
        config: the config file.
        out: the bank to write.
        options: see :class:`AnnotationOptions`.
    """
    report: BuildReport = _import("terse_aug_mmdet").build_from_mmdet(config, out, **options)
    return report


def _import(integration: str, modules: Sequence[str] = ()) -> Any:
    """Import an integration, and then modules of the user's that register data sets with its framework."""
    sys.path.insert(0, "")  # modules in the working directory
    try:
        imported = importlib.import_module(integration)
        for module in modules:
            importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{error}; this source needs its framework, and the modules that are named") from error
    return imported
