"""Statistics of a bank, and reports of one bank or of two as HTML pages."""

from terse_aug.bank.analysis.comparison import FeatureDistance, render_comparison
from terse_aug.bank.analysis.page import render_report
from terse_aug.bank.analysis.statistics import (
    BankStatistics,
    ClassStatistics,
    DuplicateGroup,
    Thumbnail,
    bank_statistics,
)

__all__ = [
    "BankStatistics",
    "ClassStatistics",
    "DuplicateGroup",
    "FeatureDistance",
    "Thumbnail",
    "bank_statistics",
    "render_comparison",
    "render_report",
]
