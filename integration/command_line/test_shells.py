"""The completion scripts in zsh and fish, as an operator has them."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from integration.conftest import needs_program

LIMIT_S = 60


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment with the program in its PATH, and a node with two VMs."""
    program = tmp_path / "bin" / "vzdump-qemu"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m vzdump_qemu "$@"\n')
    program.chmod(0o755)
    configs = tmp_path / "node/etc/pve/qemu-server"
    configs.mkdir(parents=True)
    (configs / "100.conf").write_text("name: web\n")
    (configs / "201.conf").write_text("name: mail\n")
    return {
        "HOME": str(tmp_path),
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "TERM": "dumb",
        "LC_ALL": "C.UTF-8",
    }


@needs_program("fish")
@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("ver", ["verify\tSay whether a backup is whole."]),
        ("--root ~/node 1", ["100\tweb"]),
        ("--root ~/node 100,", ["100,201\tmail"]),
        ("100 --mode=su", ["--mode=suspend"]),
        ("100 --mode su", ["suspend"]),
        ("100 --nosuch=", []),
        ("list ~/no", ["~/node/\tDirectory"]),
    ],
)
def test_fish_offers_what_fits(line: str, offers: list[str], environment: dict[str, str]) -> None:
    script = (
        f"vzdump-qemu completion fish | source; complete -C {shlex.quote(f'vzdump-qemu {line}')}"
    )
    ended = subprocess.run(
        ["fish", "-N", "-c", script], check=True, capture_output=True, text=True, env=environment
    )
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == offers


@needs_program("zsh")
@pytest.mark.parametrize(
    ("line", "becomes"),
    [
        ("ver", "verify "),
        ("--root ~/node 1", "--root ~/node 100 "),
        ("100 --mode=su", "100 --mode=suspend "),
        ("100 -mo", "100 -mode "),
        ("list ~/no", "list ~/node/"),
    ],
)
def test_zsh_completes_a_word(line: str, becomes: str, environment: dict[str, str]) -> None:
    shell = pexpect.spawn(
        "zsh",
        ["-f", "-i"],
        encoding="utf-8",
        env=environment,
        dimensions=(24, 120),
        timeout=LIMIT_S,
    )
    # What follows the tabulator key is told by the shell itself, not read off its redrawing.
    shell.sendline(
        "PS1=; unsetopt prompt_sp; autoload -U compinit; compinit -u -D;"
        " source <(vzdump-qemu completion zsh);"
        ' tell() { print -r -- "<$BUFFER>" }; zle -N tell; bindkey "^T" tell; echo rea""dy'
    )
    shell.expect("ready")
    shell.send(f"vzdump-qemu {line}\t\x14")
    assert shell.expect_exact(f"<vzdump-qemu {becomes}>") == 0
    shell.close(force=True)
