"""Mutants as data: which protective act is taken out of which module.

Owns reading `catalogue.toml` and applying one mutant to a module's source. An old text has to
occur exactly once in the function that the mutant names, so that a mutant cannot rot in silence.
"""

from __future__ import annotations

import ast
import tomllib
from dataclasses import dataclass
from pathlib import Path

CATALOGUE = Path(__file__).with_name("catalogue.toml")


class StaleMutant(Exception):
    """The source has changed: the mutant no longer says what it takes out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One replacement.

    Attributes:
        within: function or class it is in, as ``Class.method``; empty for the whole module.
    """

    within: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One protective act taken out."""

    name: str
    removes: str
    module: str
    edits: tuple[Edit, ...]


def load_catalogue(path: Path = CATALOGUE) -> dict[str, Mutant]:
    """All mutants by name, in the order of the file."""
    found: dict[str, Mutant] = {}
    for table in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]:
        mutant = Mutant(
            name=table["name"],
            removes=table["removes"],
            module=table["module"],
            edits=tuple(
                Edit(within=edit.get("within", ""), old=edit["old"], new=edit["new"])
                for edit in table["edit"]
            ),
        )
        if mutant.name in found:
            raise StaleMutant(f"two mutants are called {mutant.name}")
        found[mutant.name] = mutant
    return found


def mutate(source: str, mutant: Mutant) -> str:
    """The source with all edits of a mutant. Raises StaleMutant, naming it."""
    for edit in mutant.edits:
        first, last = _span(source, edit.within, mutant)
        lines = source.splitlines(keepends=True)
        text = "".join(lines[first:last])
        count = text.count(edit.old)
        if count != 1:
            raise StaleMutant(
                f"mutant {mutant.name}: its text occurs {count} times in "
                f"{mutant.module} {edit.within}: {edit.old!r}"
            )
        mutated = text.replace(edit.old, edit.new)
        source = "".join([*lines[:first], mutated, *lines[last:]])
    try:
        compile(source, mutant.module, "exec")
    except SyntaxError as error:
        raise StaleMutant(f"mutant {mutant.name}: {error}") from error
    return source


def _span(source: str, within: str, mutant: Mutant) -> tuple[int, int]:
    """First line and the line after the last of a function, counted from 0."""
    if not within:
        return 0, len(source.splitlines())
    nodes: list[ast.stmt] = ast.parse(source).body
    found: ast.stmt | None = None
    for name in within.split("."):
        named = [
            node
            for node in nodes
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and node.name == name
        ]
        if len(named) != 1:
            raise StaleMutant(f"mutant {mutant.name}: no {within} in {mutant.module}")
        found, nodes = named[0], named[0].body
    assert found is not None and found.end_lineno is not None
    return found.lineno - 1, found.end_lineno
