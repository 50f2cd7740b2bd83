"""What is in a bank, to look at: a survey of its cut-outs, and a page of it.

Imports the bank, its measures, and jinja2.
"""

from terse_aug.bank.analysis.page import render_report
from terse_aug.bank.analysis.statistics import BankStatistics, ClassStatistics, Group, Shown, bank_statistics

__all__ = ["BankStatistics", "ClassStatistics", "Group", "Shown", "bank_statistics", "render_report"]
