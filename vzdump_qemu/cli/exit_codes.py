"""The table of exit codes, made from the tree of errors (``docs/exit-codes.md``).

Owns the text of that file; the codes are the classes' own. Write it anew with
``python -m vzdump_qemu.cli.exit_codes > docs/exit-codes.md``.
"""

from __future__ import annotations

import inspect

import click

from vzdump_qemu import errors
from vzdump_qemu.errors import BackupError

BACKUP_EXIT_CODES = (
    (0, "every VM was backed up; warnings are told in the last line, `TASK WARNINGS: n`"),
    (0, "the job of `--job` is not enabled, or another node's: nothing was done"),
    (2, "the command line was wrong; nothing was done"),
    (10, "the job of `--job` does not exist, or cannot be run as it is written; nothing was done"),
    (
        255,
        "at least one VM was not backed up, or the job was interrupted (`TASK ERROR: …`)",
    ),
)
"""What a backup ends with, as vzdump does."""

_HEAD = (
    """# Exit codes

A backup (`vzdump-qemu VMID…`) ends as `vzdump` does:

| code | meaning |
|---|---|
"""
    + "".join(f"| {code} | {text} |\n" for code, text in BACKUP_EXIT_CODES)
    + """
Every other verb ends with 0, with 2 for a wrong command line, or with the code of its error.
"Again" says whether the same act may succeed when it is simply tried once more.

| code | error | meaning | again |
|---|---|---|---|
"""
)


def error_classes() -> tuple[type[BackupError], ...]:
    """Every error class of the product, the root first, in order of their codes."""
    found: list[type[BackupError]] = [BackupError]
    for error_class in found:
        # Subclasses elsewhere never reach an operator: their room catches them itself.
        found += [sub for sub in error_class.__subclasses__() if sub.__module__ == errors.__name__]
    return tuple(sorted(found, key=lambda error_class: error_class.exit_code))


def render_exit_codes() -> str:
    """The whole document, in Markdown."""
    rows = []
    for error_class in error_classes():
        summary = (inspect.getdoc(error_class) or "").split("\n\n")[0].replace("\n", " ")
        again = "yes" if error_class.retryable else "no"
        name = error_class.__name__
        rows.append(f"| {error_class.exit_code} | `{name}` | {summary} | {again} |\n")
    return _HEAD + "".join(rows)


if __name__ == "__main__":
    click.echo(render_exit_codes(), nl=False)
