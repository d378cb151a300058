"""The manual page vzdump-qemu(1), made of what ``--help`` is made of; and the verb ``manual``.

Owns the page's order and its roff. Options, verbs and exit codes have their texts where they are
defined; the rest is `manual_parts`'. Also ``python -m vzdump_qemu.cli.manual``.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator

import click

from vzdump_qemu.cli import manual_parts
from vzdump_qemu.cli.exit_codes import BACKUP_EXIT_CODES, error_classes
from vzdump_qemu.cli.main import command_line
from vzdump_qemu.cli.verbs import PROGRAM, USAGES
from vzdump_qemu.cli.vzdump_arguments import OPTIONS

_BACKUP_VERB = "backup"
_HELP_NAMES = frozenset(("-h", "--help"))
_SOURCE_COLUMNS = 60
_LONG_WORD = re.compile(r"\S{40,}")
_DEFAULT = re.compile(r"\s+(\[[a-z]+: .*\])$", re.DOTALL)


def render_manual(version: str) -> str:
    """The whole page, in roff with the man macros.

    Args:
        version: of the program, for the foot of the page.
    """
    lines = [
        f'.TH {PROGRAM.upper()} 1 "" "{PROGRAM} {version}" "User Commands"',
        # Nothing of a command line may be broken by a hyphen or stretched by blanks.
        ".nh",
        ".ad l",
        ".SH NAME",
        f"{_text(PROGRAM)} \\- back up virtual machines of QEMU, and prove the backups whole",
        ".SH SYNOPSIS",
        *_synopsis(USAGES),
        ".SH DESCRIPTION",
        *_paragraphs(manual_parts.DESCRIPTION),
        ".SH OPTIONS OF A BACKUP",
    ]
    for section in dict.fromkeys(spec.section for spec in OPTIONS):
        lines.append(f".SS {_text(section)}")
        for spec in OPTIONS:
            if spec.section == section:
                lines += _item(f"--{spec.name}", spec.metavar, spec.help)
    lines.append(".SH VERBS")
    for path, command in _commands(command_line, ()):
        if path != (_BACKUP_VERB,):
            lines += _verb(path, command)
    lines += [".SH EXIT STATUS", "Of a backup:", *_exit_codes(BACKUP_EXIT_CODES)]
    lines += [".PP", "Of every other verb: 0, 2 for a wrong command line, or its error's own:"]
    lines += _exit_codes(
        (error_class.exit_code, (inspect.getdoc(error_class) or "").split("\n\n")[0])
        for error_class in error_classes()
    )
    for title, rows in (("FILES", manual_parts.FILES), ("ENVIRONMENT", manual_parts.ENVIRONMENT)):
        lines.append(f".SH {title}")
        for name, text in rows:
            lines += _item(name, "", text)
    lines.append(".SH EXAMPLES")
    for text, commands in manual_parts.EXAMPLES:
        lines += [".PP", _text(text), ".PP", ".in +4n", ".EX"]
        lines += [_text(line) for line in commands.split("\n")]
        lines += [".EE", ".in"]
    pages = [f".BR {_text(name)} ({number})" for name, number in manual_parts.SEE_ALSO]
    lines += [".SH SEE ALSO", *(f"{page} ," for page in pages[:-1]), pages[-1]]
    kept = (
        line
        for above, line in zip(["", *lines], lines, strict=False)
        if line != ".PP" or not above.startswith((".SH", ".SS"))
    )
    return "\n".join(kept) + "\n"


def _commands(
    group: click.Group, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every verb and verb of a verb that can be called, with the words that name it."""
    context = click.Context(group)
    for verb in group.list_commands(context):
        command = group.get_command(context, verb)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, verb))
        else:
            yield (*path, verb), command


def _verb(path: tuple[str, ...], command: click.Command) -> list[str]:
    context = click.Context(command, info_name=" ".join((PROGRAM, *path)))
    pieces = " ".join(command.collect_usage_pieces(context))
    # The paragraph mark of click keeps lines as they are written.
    kept, *others = inspect.cleandoc(command.help or "").replace("\b\n", "\b").split("\n\n")
    lines = [f".SS {_text(' '.join(path))}", *_synopsis([pieces], prefix=" ".join(path))]
    lines += _paragraphs([kept])
    for paragraph in others:
        if paragraph.startswith("\b"):
            rows = (_text(row) for row in paragraph[1:].split("\n"))
            lines += [".PP", ".in +4n", ".EX", *rows, ".EE", ".in"]
        else:
            lines += _paragraphs([paragraph])
    for param in command.params:
        if isinstance(param, click.Option) and not _HELP_NAMES & set(param.opts):
            record = param.get_help_record(context)
            assert record is not None
            names, _, metavar = record[0].partition(" ")
            if names.endswith(","):
                names, metavar = record[0], ""
            lines += _item(names, metavar, record[1])
    return lines


def _synopsis(usages: Iterable[str], prefix: str = "") -> list[str]:
    lines: list[str] = []
    for usage in usages:
        lines += [".br"] if lines else []
        name = f"{PROGRAM} {prefix}".strip()
        lines.append(f"\\fB{_text(name)}\\fR {_text(usage)}")
    return lines


def _item(name: str, value: str, text: str) -> list[str]:
    default = _DEFAULT.search(text)
    body = _DEFAULT.sub("", text)
    note = f" {default[1]}" if default else ""
    head = f"\\fB{_text(name)}\\fR" + (f" \\fI{_text(value)}\\fR" if value else "")
    return [".TP", head, *_wrapped(f"{body}{note}")]


def _paragraphs(texts: Iterable[str]) -> list[str]:
    lines: list[str] = []
    for text in texts:
        lines += [".PP", *_wrapped(text)]
    return lines


def _exit_codes(rows: Iterable[tuple[int, str]]) -> list[str]:
    lines: list[str] = []
    for code, text in rows:
        lines += _item(str(code), "", " ".join(text.replace("``", "").split()))
    return lines


def _wrapped(text: str) -> list[str]:
    """A paragraph in lines of a file; roff fills its own."""
    return [_text(line) for line in textwrap.wrap(text, _SOURCE_COLUMNS, break_on_hyphens=False)]


def _text(text: str) -> str:
    """Text that roff takes as it is: nothing of it is a request, a dash stays a dash."""
    text = text.replace("…", "...")
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga")
    escaped = escaped.replace("'", "\\(aq").replace("~", "\\(ti").replace("^", "\\(ha")
    # A list without blanks may be broken behind each comma.
    escaped = _LONG_WORD.sub(lambda word: word[0].replace(",", ",\\:"), escaped)
    return f"\\&{escaped}" if escaped.startswith(".") else escaped


@click.command("manual")
def manual_command() -> None:
    """Print the manual page vzdump-qemu(1), for man -l - or a file in man1."""
    from importlib.metadata import version

    click.echo(render_manual(version(PROGRAM)), nl=False)


if __name__ == "__main__":
    manual_command(prog_name=f"python -m {__spec__.name}")
