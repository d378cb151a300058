"""What verbs print: tables for people, JSON for programs.

Owns the layout; what is in the rows is the verb's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import click

_Decorated = Callable[..., Any]

json_option: Callable[[_Decorated], _Decorated] = click.option(
    "--json", "as_json", is_flag=True, help="one JSON document instead of text."
)


def print_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns, numbers to the right."""
    table = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[index]) for row in table) for index in range(len(head))]
    for row_index, row in enumerate(table):
        cells = [
            text.rjust(width) if row_index and _is_number(text) else text.ljust(width)
            for text, width in zip(row, widths, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def _is_number(text: str) -> bool:
    return text[:1].isdigit() and text.replace(".", "").isdigit()
