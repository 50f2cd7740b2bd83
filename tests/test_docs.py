"""The documentation names every setting and every counter."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from frameworks import need_detectron2

from terse_aug import config
from terse_aug.training.metrics import COUNTERS, ROBUSTNESS_COUNTERS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SETTINGS = (
    config.PasteConfig,
    config.TransformRanges,
    config.Photometric,
    config.Robustness,
    *config.POLICY_SETTINGS.values(),
)


@pytest.fixture
def configuration(monkeypatch: pytest.MonkeyPatch) -> str:
    """The configuration page as MkDocs' hook fills it in."""
    monkeypatch.setattr(sys, "path", [str(DOCS), *sys.path])
    from settings_tables import on_page_markdown

    return on_page_markdown((DOCS / "configuration.md").read_text())


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.__name__)
def test_the_configuration_page_has_a_row_for_every_setting(settings: type, configuration: str) -> None:
    for own in fields(settings):
        help_text = own.metadata["help"].replace("|", "\\|")
        row = re.compile(rf"\| `{own.name}` \| .+ \| {re.escape(help_text)} \| `TERSE\.[A-Z_.]*{own.name.upper()}`")
        assert row.search(configuration), f"{settings.__name__}.{own.name}"


def test_every_key_of_detectron2_has_a_row(configuration: str) -> None:
    need_detectron2()
    from terse_aug_detectron2 import describe_config

    pages = configuration + (DOCS / "detectron2.md").read_text()
    keys = re.findall(r"^\| (`TERSE\.[A-Z_.]+`) \|", describe_config(), re.MULTILINE)
    assert len(keys) > len(config.POLICY_SETTINGS)
    for key in keys:
        assert re.search(rf"^\|.*{re.escape(key)}.* \|$", pages, re.MULTILINE), key


@pytest.mark.parametrize("counter", [*COUNTERS, *ROBUSTNESS_COUNTERS])
def test_the_metrics_page_has_a_row_for_every_counter(counter: str) -> None:
    assert f"| `{counter}` |" in (DOCS / "metrics.md").read_text()


def test_lines_of_prose_have_at_most_120_characters() -> None:
    paths = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    long, in_code = [], False
    for path in paths:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            in_code ^= line.lstrip().startswith("```")
            if len(line) > 120 and not in_code and not line.startswith(("|", "!", ">")):
                long.append(f"{path.relative_to(ROOT)}:{number}")
    assert paths
    assert not long
