"""Rows of the contract (host behaviour) that must each have a test of that name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
_NAME = re.compile(r"def test_row_((?:[0-9]+_)+)(?:and_((?:[0-9]+_)+))?")
ROWS = (
    *(f"10.1.{row}" for row in range(1, 11)),
    *("2.7", "5.5", "5.7", "5.8", "10.2", "10.3"),
)


@pytest.fixture(scope="module")
def named_rows() -> set[str]:
    """All rows that a test is named after."""
    return {
        row.rstrip("_").replace("_", ".")
        for path in TESTS.rglob("test_*.py")
        for found in _NAME.finditer(path.read_text(encoding="utf-8"))
        for row in found.groups()
        if row
    }


@pytest.mark.parametrize("row", ROWS)
def test_row_of_the_contract_has_a_test_named_after_it(row: str, named_rows: set[str]) -> None:
    assert row in named_rows
