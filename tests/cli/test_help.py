"""The texts of --help: complete, readable on a terminal of 80 columns; vzdump's name as well."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from vzdump_qemu.cli.main import command_line, run
from vzdump_qemu.cli.verbs import VERB_HELP
from vzdump_qemu.cli.vzdump_arguments import OPTIONS, OptionSpec

# Host behaviour, section 2.1.
VZDUMP_OPTIONS = {
    "all", "bwlimit", "compress", "dumpdir", "exclude", "exclude-path", "fleecing", "ionice",
    "job-id", "lockwait", "mailnotification", "mailto", "maxfiles", "mode", "node",
    "notes-template", "notification-mode", "pbs-change-detection-mode", "performance", "pigz",
    "pool", "protected", "prune-backups", "quiet", "remove", "script", "size", "stdexcludes",
    "stdout", "stop", "stopwait", "storage", "tmpdir", "zstd",
}  # fmt: skip


def command_paths() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [()]
    for verb in VERB_HELP:
        command = command_line.get_command(click.Context(command_line), verb)
        inner = sorted(command.commands) if isinstance(command, click.Group) else []
        found += [(verb,), *((verb, word) for word in inner)]
    return found


def test_every_option_of_vzdump_is_known() -> None:
    assert VZDUMP_OPTIONS - {spec.name for spec in OPTIONS} == set()


@pytest.mark.parametrize("spec", OPTIONS, ids=lambda spec: spec.name)
def test_help_of_an_option_is_a_sentence(spec: OptionSpec) -> None:
    text, bracket, _ = spec.help.partition("  [")
    assert text.endswith(".")
    assert not bracket or spec.help.endswith("]")
    assert "\n" not in spec.help


@pytest.mark.parametrize("path", command_paths(), ids=" ".join)
def test_help_fits_80_columns(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run([*path, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Usage: vzdump-qemu")
    assert [line for line in lines if len(line) > 80] == []


@pytest.mark.slow
def test_program_called_vzdump_behaves_the_same(tmp_path: Path) -> None:
    program = tmp_path / "vzdump"
    program.write_text(f"#!{sys.executable}\nfrom vzdump_qemu.cli.main import main\nmain()\n")
    program.chmod(0o755)
    words = ["-mode", "snap", "100"]
    outcomes = [
        subprocess.run(argv, capture_output=True, text=True, check=False, env=dict(os.environ))
        for argv in ([str(program), *words], [sys.executable, "-m", "vzdump_qemu", *words])
    ]
    assert outcomes[0].stderr.startswith("400 Parameter verification failed. mode: ")
    assert outcomes[0].stderr == outcomes[1].stderr
    assert outcomes[0].returncode == outcomes[1].returncode == 2
