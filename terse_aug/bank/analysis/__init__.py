"""What is in a bank, to look at: a survey of its cut-outs, and a page of it.

Imports the bank, its measures, and jinja2.
"""

from terse_aug.bank.analysis.page import render_survey
from terse_aug.bank.analysis.statistics import ClassSurvey, Group, Shown, Survey, survey_bank

__all__ = ["ClassSurvey", "Group", "Shown", "Survey", "render_survey", "survey_bank"]
