"""``key create`` and ``key show``."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pexpect
import pytest

from tests.cli.lab_command import Run
from vzdump_qemu.secret import Secret
from vzdump_qemu.stores.pbs import load_backup_key


@pytest.fixture(autouse=True)
def no_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PBS_ENCRYPTION_PASSWORD", "PBS_ENCRYPTION_PASSWORD_FILE"):
        monkeypatch.delenv(name, raising=False)


def test_bare_key_is_its_owners_alone_and_can_be_used(command: Run, tmp_path: Path) -> None:
    path = tmp_path / "my.key"
    outcome = command("key", "create", path, "--kdf", "none", "--json")
    assert outcome.code == 0, outcome.err
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["my.key"]
    told = json.loads(outcome.out)
    assert told["kdf"] == "none"
    assert told["fingerprint"] == str(load_backup_key(str(path)).key.fingerprint)
    assert json.loads(path.read_text())["kdf"] is None


@pytest.mark.slow
def test_passphrase_of_the_environment_protects_the_key(
    command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PBS_ENCRYPTION_PASSWORD", "five5")
    path = tmp_path / "my.key"
    assert command("key", "create", path, "--hint", "five").code == 0
    told = json.loads(command("key", "show", path, "--json").out)
    assert (told["kdf"], told["hint"]) == ("scrypt", "five")
    key = load_backup_key(str(path), passphrase=Secret("five5")).key
    assert told["fingerprint"] == str(key.fingerprint)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_existing_file_is_never_overwritten(kind: str, command: Run, tmp_path: Path) -> None:
    path = tmp_path / "my.key"
    if kind == "file":
        path.write_text("precious")
    else:
        path.symlink_to(tmp_path / "nowhere")
    outcome = command("key", "create", path, "--kdf", "none")
    assert outcome.code == 62
    assert outcome.err == (
        f"ERROR: file '{path}' exists and is not overwritten\n"
        "hint: what was encrypted with a key is lost without it\n"
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["my.key"]


@pytest.mark.parametrize(
    ("passphrase", "place", "code", "text"),
    [
        ("four", "my.key", 62, "Passphrase is too short!"),
        (None, "my.key", 10, "no passphrase given"),
        ("five5", "none/my.key", 62, "No such file or directory"),
    ],
)
@pytest.mark.slow
def test_key_that_cannot_be_made_leaves_nothing(
    passphrase: str | None,
    place: str,
    code: int,
    text: str,
    command: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if passphrase is not None:
        monkeypatch.setenv("PBS_ENCRYPTION_PASSWORD", passphrase)
    outcome = command("key", "create", tmp_path / place)
    assert (outcome.code, text in outcome.err) == (code, True), outcome.err
    assert list(tmp_path.iterdir()) == []


def test_show_of_what_is_no_key_is_told(command: Run, tmp_path: Path) -> None:
    missing = command("key", "show", tmp_path / "none")
    assert missing.code == 62
    assert f"unable to read encryption key '{tmp_path}/none'" in missing.err
    (tmp_path / "odd").write_text("{}")
    assert command("key", "show", tmp_path / "odd").code == 62


@pytest.mark.slow
def test_terminal_is_asked_twice_and_shows_nothing(tmp_path: Path) -> None:
    path = tmp_path / "my.key"
    words = ["-m", "vzdump_qemu", "key", "create", str(path)]
    with pexpect.spawn(sys.executable, words, timeout=30, encoding="utf-8") as terminal:
        terminal.expect("Passphrase: ")
        terminal.sendline("secret-1")
        terminal.expect("Again: ")
        terminal.sendline("secret-2")
        terminal.expect("do not match")
        assert "secret" not in terminal.before
        terminal.expect("Passphrase: ")
        terminal.sendline("secret-3")
        terminal.expect("Again: ")
        terminal.sendline("secret-3")
        terminal.expect("fingerprint")
        terminal.expect(pexpect.EOF)
        assert "secret" not in terminal.before
    load_backup_key(str(path), passphrase=Secret("secret-3"))
