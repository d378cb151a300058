"""The manual page: all that --help tells is in it, and nothing in it is a request by accident."""

import re

import click
import pytest

from vzdump_qemu.cli.exit_codes import error_classes
from vzdump_qemu.cli.main import command_line, run
from vzdump_qemu.cli.manual import render_manual
from vzdump_qemu.cli.verbs import VERB_HELP
from vzdump_qemu.cli.vzdump_arguments import OPTIONS

PAGE = render_manual("9.9")
REQUESTS = {
    ".BR", ".EE", ".EX", ".PP", ".SH", ".SS", ".TH", ".TP", ".ad", ".br", ".in", ".nh",
}  # fmt: skip


def plain(roff: str) -> str:
    """The text of a page without its markup."""
    text = re.sub(r"\\f[BIR]|\\[:&]", "", roff)
    for mark, letter in (("\\-", "-"), ("\\(aq", "'"), ("\\(ga", "`"), ("\\(ti", "~")):
        text = text.replace(mark, letter)
    return text.replace("\\e", "\\")


def test_every_line_is_text_or_a_known_request() -> None:
    assert {line.split()[0] for line in PAGE.splitlines() if line.startswith(".")} == REQUESTS
    assert not [line for line in PAGE.splitlines() if not line or line.startswith("'")]


def test_sections_stand_in_the_order_of_a_manual_page() -> None:
    assert re.findall(r"^\.SH (.*)$", PAGE, re.MULTILINE) == [
        "NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS OF A BACKUP", "VERBS", "EXIT STATUS", "FILES",
        "ENVIRONMENT", "EXAMPLES", "SEE ALSO",
    ]  # fmt: skip


@pytest.mark.parametrize("spec", OPTIONS, ids=lambda spec: spec.name)
def test_every_option_of_a_backup_is_there_with_its_help(spec: object) -> None:
    assert spec in OPTIONS
    found = next(option for option in OPTIONS if option is spec)
    words = " ".join(plain(PAGE).split())
    assert f"--{found.name} {found.metavar} {' '.join(found.help.split())}" in words


def options_of(group: click.Group) -> list[tuple[str, str]]:
    context = click.Context(group)
    found = []
    for verb in group.list_commands(context):
        command = group.get_command(context, verb)
        assert command is not None
        if isinstance(command, click.Group):
            found += [(f"{verb} {inner}", name) for inner, name in options_of(command)]
        elif verb != "backup":
            found += [(verb, param.opts[0]) for param in command.params if param.opts[0][0] == "-"]
    return found


def test_every_option_of_every_verb_is_there() -> None:
    parts = dict(part.split("\n", 1) for part in plain(PAGE).split(".SS ")[1:])
    assert set(VERB_HELP) - {"backup", "demo", "key", "lab"} <= set(parts)
    missing = [
        (verb, name) for verb, name in options_of(command_line) if f"\n{name}" not in parts[verb]
    ]
    assert missing == []


def test_every_exit_code_is_there() -> None:
    status = plain(PAGE).split(".SH EXIT STATUS")[1].split(".SH ")[0]
    codes = {int(code) for code in re.findall(r"^\.TP\n(\d+)$", status, re.MULTILINE)}
    assert codes == {0, 2, 255} | {error_class.exit_code for error_class in error_classes()}


def test_page_names_its_version_and_no_default_twice() -> None:
    assert '"vzdump-qemu 9.9"' in PAGE
    assert re.search(r"default: [^\]]*\][^.]*\[default", PAGE) is None


def test_verb_prints_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["manual"]) == 0
    assert capsys.readouterr().out.startswith(".TH VZDUMP-QEMU 1 ")
