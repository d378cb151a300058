"""What may follow on a command line, as the functions say and as bash asks."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vzdump_qemu.cli.completion import complete
from vzdump_qemu.cli.completion_shells import join_broken
from vzdump_qemu.cli.main import VerbGroup, command_line, run

ARCHIVE = "vzdump-qemu-100-2026_01_02-03_04_05.vma.zst"


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """What completion looks at of a node."""
    configs = tmp_path / "etc/pve/qemu-server"
    configs.mkdir(parents=True)
    (configs / "100.conf").write_text("name: web\nmemory: 1\n")
    (configs / "101.conf").write_text("memory: 1\nname: mail\n")
    (configs / "1000.conf").write_text("memory: 1\n")
    (configs / "100.conf.tmp.1").write_text("")
    (tmp_path / "etc/pve/storage.cfg").write_text(
        "dir: local\n\tpath /var/lib/vz\n\tcontent backup\n\n"
        "pbs: far\n\tserver h\n\tdatastore d\n\n"
        "dir: iso\n\tpath /iso\n\tcontent iso\n\n"
        "dir: off\n\tpath /off\n\tcontent backup\n\tdisable\n"
    )
    (tmp_path / "etc/pve/user.cfg").write_text("user:root@pam:1:\npool:prod:all:100:local:\n")
    (tmp_path / "etc/pve/jobs.cfg").write_text("vzdump: nightly\n\tschedule 22:00\n\tall 1\n")
    dump = tmp_path / "var/lib/vz/dump"
    dump.mkdir(parents=True)
    for name in (ARCHIVE, f"{ARCHIVE}.notes", "vzdump-qemu-101-2026_01_03-03_04_05.vma", "x"):
        (dump / name).write_text("")
    return tmp_path


def offered(line: str) -> list[str]:
    """Values that may stand for the last word of a line, which ends in a blank if it is empty."""
    *words, incomplete = [*shlex.split(line), *([""] if line.endswith(" ") or not line else [])]
    assert isinstance(command_line, VerbGroup)
    return [
        item.value if item.type == "plain" else f"<{item.type}>"
        for item in complete(command_line, words, incomplete)
    ]


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("ver", ["verify"]),
        ("backup --mode s", ["snapshot", "suspend", "stop"]),
        ("100 --mode=su", ["--mode=suspend"]),
        ("100 -mode=su", ["-mode=suspend"]),
        ("100 --compress ", ["0", "1", "gzip", "lzo", "zstd"]),
        ("100 --bwl", ["--bwlimit"]),
        ("100 -bwl", ["-bwlimit"]),
        ("--bwlimit 5 --bwl", []),
        ("100 --exclude-d", ["--exclude-disk"]),
        ("100 --quiet=", ["--quiet=1", "--quiet=0"]),
        ("100 --bwlimit ", []),
        ("100 --dumpdir /v", ["<dir>"]),
        ("100 --script /v", ["<file>"]),
        ("--qmp ", ["<file>"]),
        ("--root ", ["<dir>"]),
        ("list ", ["<dir>"]),
        ("lab st", ["start", "status", "stop"]),
        ("lab start ", ["<dir>"]),
        ("lab create l --dis", ["--disk"]),
        ("lab create l --no", ["--no-agent"]),
        ("key create k --kdf n", ["none"]),
        ("completion ", ["bash", "zsh", "fish"]),
        ("verify --root /nonexistent ", ["<file>"]),
        ("verify a ", []),
        ("show --nosuch x --json --con", ["--config"]),
        ("lab frobnicate ", ["create", "destroy", "start", "status", "stop"]),
    ],
)
def test_words_and_values_are_offered_where_they_fit(line: str, values: list[str]) -> None:
    assert offered(line) == values


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("--root NODE ", ["100", "101", "1000"]),
        ("--root=NODE --mode stop 100", ["100", "1000"]),
        ("backup -root NODE 100 101 10", ["100", "101", "1000"]),
        ("--root NODE --exclude 100,", ["100,101", "100,1000"]),
        ("--root NODE --stdout ", ["100", "101", "1000"]),
        ("--root NODE 100 --storage ", ["local", "far"]),
        ("--root NODE 100 --storage=l", ["--storage=local"]),
        ("--root NODE --pool ", ["prod"]),
        ("--root NODE --job ", ["nightly"]),
        ("jobs --root NODE --systemd n", ["nightly"]),
        ("lab start NODE 101", ["101"]),
        ("list NODE --storage ", ["local", "far"]),
        ("prune --root NODE --storage f", ["far"]),
        ("restore a 10", []),
        ("restore --root NODE a 101", ["101"]),
    ],
)
def test_what_the_node_holds_is_offered(line: str, values: list[str], node: Path) -> None:
    assert offered(line.replace("NODE", str(node))) == values


@pytest.mark.parametrize("verb", ["verify", "show", "extract", "restore"])
def test_archives_are_offered_newest_first(verb: str, node: Path) -> None:
    dump = node / "var/lib/vz/dump"
    assert offered(f"{verb} --root {node} ") == [
        str(dump / "vzdump-qemu-101-2026_01_03-03_04_05.vma"),
        str(dump / ARCHIVE),
    ]
    assert offered(f"{verb} --root {node} ./x") == ["<file>"]


def test_first_word_may_be_a_verb_or_a_vm(node: Path) -> None:
    assert offered("")[:3] == ["backup", "list", "show"]
    assert "demo" not in offered("")


def test_offers_say_what_they_are(node: Path) -> None:
    assert isinstance(command_line, VerbGroup)
    items = complete(command_line, ["--root", str(node)], "10")
    assert [item.help for item in items] == ["web", "mail", None]
    [item] = complete(command_line, ["100"], "--lockwait")
    assert item.help is not None
    assert item.help.endswith("[default: 180]")


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (["100", "--mode", "=", "s"], ["100", "--mode=s"]),
        (["--mode", "="], ["--mode="]),
        (["show", "local", ":", "backup/vm/1"], ["show", "local:backup/vm/1"]),
        (["verify", "a", ""], ["verify", "a", ""]),
        ([], [""]),
    ],
)
def test_pieces_of_bash_become_words_again(pieces: list[str], words: list[str]) -> None:
    assert join_broken(pieces) == words


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Path]:
    """The program in a folder of its own, as a shell finds it."""
    path = tmp_path / "bin" / "vzdump-qemu"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m vzdump_qemu "$@"\n')
    path.chmod(0o755)
    yield path


def ask_bash(program: Path, *pieces: str) -> list[str]:
    """What bash itself has in COMPREPLY after the tabulator key behind these pieces."""
    script = (
        'source <(vzdump-qemu completion bash); set -- vzdump-qemu "$@"; COMP_WORDS=("$@");'
        ' COMP_CWORD=$(($# - 1)); compopt() { local IFS=" "; echo "compopt $*"; };'
        " spec=$(complete -p vzdump-qemu); [[ $spec =~ -F\\ ([^ ]+) ]];"
        ' "${BASH_REMATCH[1]}" vzdump-qemu "${COMP_WORDS[COMP_CWORD]}" "";'
        ' printf "%s\\n" "${COMPREPLY[@]}"'
    )
    ended = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", *pieces],
        env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stderr == ""
    return [line for line in ended.stdout.splitlines() if line]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pieces", "replies"),
    [
        (["ver"], ["verify"]),
        (["100", "--mode", "="], ["snapshot", "suspend", "stop"]),
        (["100", "-mode", "sn"], ["snapshot"]),
        (["--root", "NODE", "--exclude", "100,"], ["100,101", "100,1000"]),
        (["list", ""], ["compopt -o filenames -o dirnames"]),
        (["key", "show", "a b"], ["compopt -o filenames -o default"]),
        (["--mode", "'unclosed"], []),
    ],
)
def test_bash_gets_its_replies(
    pieces: list[str], replies: list[str], node: Path, program: Path
) -> None:
    assert ask_bash(program, *(piece.replace("NODE", str(node)) for piece in pieces)) == replies


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_names_the_program(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_VZDUMP_QEMU_COMPLETE={shell}_complete" in script
    assert "2>/dev/null" in script


@pytest.mark.parametrize("instruction", ["nonsense", "bash_complete", "tcsh_complete"])
def test_shell_that_asks_wrongly_hears_nothing(
    instruction: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_VZDUMP_QEMU_COMPLETE", instruction)
    monkeypatch.delenv("COMP_WORDS", raising=False)
    assert run(["100"]) == 99
    assert capsys.readouterr() == ("", "")
