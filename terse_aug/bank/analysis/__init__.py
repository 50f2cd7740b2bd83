"""Statistics of a bank, and a report of them as an HTML page."""

from terse_aug.bank.analysis.page import render_report
from terse_aug.bank.analysis.statistics import (
    BankStatistics,
    ClassStatistics,
    DuplicateGroup,
    Thumbnail,
    bank_statistics,
)

__all__ = ["BankStatistics", "ClassStatistics", "DuplicateGroup", "Thumbnail", "bank_statistics", "render_report"]
