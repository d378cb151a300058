"""The list of failure modes: every row is decided somewhere, and the document says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from vzsim.failure_modes import (
    REASONS,
    REMARKS,
    TESTS,
    TRIGGERS,
    render_failure_modes,
    scenarios_by_row,
)

ROOT = Path(__file__).parents[2]
ROWS = range(1, 99)


def test_rows_are_numbered_without_a_gap() -> None:
    assert list(TRIGGERS) == list(ROWS)


@pytest.mark.parametrize("number", ROWS)
def test_row_is_decided_somewhere_or_says_why_not(number: int) -> None:
    is_decided = number in scenarios_by_row() or number in TESTS
    assert is_decided is not (number in REASONS)


def test_no_scenario_is_about_a_row_that_does_not_exist() -> None:
    assert set(scenarios_by_row()) <= set(ROWS)
    assert set(REMARKS) <= set(TESTS)


@pytest.mark.parametrize("name", sorted({name for names in TESTS.values() for name in names}))
def test_named_test_exists(name: str) -> None:
    path, _, function = name.partition("::")
    assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8")


def test_document_is_what_the_list_says() -> None:
    path = ROOT / "docs" / "failure-modes.md"
    assert path.read_text(encoding="utf-8") == render_failure_modes()
