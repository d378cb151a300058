"""Which backup server the command line and the environment mean, and what contradicts it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cli.lab_command import Run
from vzdump_qemu.api import fit_options, open_socket_vm
from vzdump_qemu.cli.effective import (
    make_backup_options,
    merge_options,
    read_file_options,
    rebuild_command_line,
    refuse_beside_server,
)
from vzdump_qemu.cli.server_target import ServerWords, make_server_target
from vzdump_qemu.errors import ConfigError, PbsError
from vzdump_qemu.node.socket_node import SocketVmOptions
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.plan.options import BackupOptions, DataPathChoice, TargetOptions

PIN, OTHER_PIN = ":".join(["ab"] * 32), ":".join(["cd"] * 32)
ENVIRONMENT = {"PBS_REPOSITORY": "backup@pbs!tok@pbs.example:8008:store", "PBS_PASSWORD": "secret"}


def make(environment: Mapping[str, str] = ENVIRONMENT, **words: str) -> PbsTarget:
    return make_server_target(ServerWords(**words), environment)


def test_environment_alone_names_a_server() -> None:
    target = make({**ENVIRONMENT, "PBS_FINGERPRINT": PIN})
    assert target.repository.render() == ENVIRONMENT["PBS_REPOSITORY"]
    assert target.password.reveal() == "secret"
    assert str(target.fingerprint) == PIN
    assert (target.storage_id, target.key_path, target.namespace.is_root) == ("", "", True)


def test_words_win_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    target = make(
        {**ENVIRONMENT, "PBS_FINGERPRINT": PIN},
        repository="[2001:db8::1]:store",
        namespace="a/b",
        key_path="my.key",
        master_key_path="/m.pem",
        fingerprint=OTHER_PIN,
    )
    assert target.repository.render() == "root@pam@[2001:db8::1]:store"
    assert str(target.namespace) == "a/b"
    assert str(target.fingerprint) == OTHER_PIN
    # Whoever works on after our death stands elsewhere.
    assert target.key_path == str(tmp_path / "my.key")
    assert target.master_key_path == "/m.pem"


def test_password_comes_from_a_file_or_a_credential_too(tmp_path: Path) -> None:
    repository = {"PBS_REPOSITORY": "store"}
    (tmp_path / "password").write_text("of file\n")
    of_file = make({**repository, "PBS_PASSWORD_FILE": str(tmp_path / "password")})
    assert of_file.password.reveal() == "of file"
    (tmp_path / "proxmox-backup-client.password").write_text("of unit")
    of_unit = make({**repository, "CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert of_unit.password.reveal() == "of unit"
    with pytest.raises(PbsError, match="unable to read secret file '/none'"):
        make({**repository, "PBS_PASSWORD_FILE": "/none"})


@pytest.mark.parametrize(
    ("words", "environment", "text", "hint"),
    [
        ({}, {}, "it was not said which backup server is meant", "PBS_REPOSITORY"),
        (
            {"repository": "host:store"},
            {},
            "no password given for 'root@pam@host:store'",
            "set PBS_PASSWORD, or PBS_PASSWORD_FILE to the path of a file",
        ),
        ({"repository": "a:b:c:d"}, ENVIRONMENT, "not a repository: 'a:b:c:d'", "datastore"),
        ({"namespace": "a//b"}, ENVIRONMENT, "not a namespace: 'a//b'", ""),
        ({"fingerprint": "12"}, ENVIRONMENT, "not a fingerprint: '12'", "dashboard"),
        ({"master_key_path": "m.pem"}, ENVIRONMENT, "'master-pubkey-file' needs", "wraps"),
    ],
)
def test_word_that_cannot_be_is_refused(
    words: dict[str, str], environment: dict[str, str], text: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        make(environment, **words)
    assert text in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("name", "value"),
    [("storage", "s"), ("dumpdir", "/d"), ("stdout", True), ("compress", "zstd")],
)
def test_option_beside_a_server_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_beside_server({"repository": "x", name: value})
    assert caught.value.message == (
        f"cannot use options 'repository' and '{name}' at the same time"
    )
    assert caught.value.hint


def test_file_does_not_stand_beside_a_server() -> None:
    conf = "storage: nas\ncompress: zstd\nmode: suspend\n"
    merged = merge_options({"repository": "host:store"}, read_file_options(conf).values)
    refuse_beside_server(merged)
    target = make()
    options = make_backup_options(
        merged, root="/", command_line="vzdump", cpu_count=1, server=target
    )
    assert options.target == TargetOptions(pbs=target)
    assert (options.mode.value, options.compressor) == ("suspend", ())


def test_server_is_no_option_of_vzdump() -> None:
    given = {"repository": "x", "ns": "a", "keyfile": "k", "fingerprint": PIN, "mode": "stop"}
    assert rebuild_command_line((100,), given) == "vzdump 100 --mode stop"


def test_vm_known_by_its_sockets_takes_a_server() -> None:
    node = open_socket_vm(SocketVmOptions(qmp_socket="/none", state_directory="/none"))
    options = fit_options(node, BackupOptions(target=TargetOptions(pbs=make())))
    assert options.data_path is DataPathChoice.PULL
    with pytest.raises(ConfigError) as caught:
        fit_options(node, BackupOptions())
    assert caught.value.hint == "use --dumpdir DIR, or --repository REPO for a backup server"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ("--repository", "host:store", "--dumpdir", "/tmp"),
            "cannot use options 'repository' and 'dumpdir' at the same time",
        ),
        (("--storage", "local", "--ns", "a"), "option 'ns' needs option 'repository'"),
        (("--repository", "host:store"), "no password given for 'root@pam@host:store'"),
        (("--keyfile", "k"), "it was not said which backup server is meant"),
    ],
)
def test_backup_that_cannot_be_meant_is_one_line(
    words: tuple[str, ...], text: str, lab: Path, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    outcome = command("--root", lab, 100, *words)
    assert outcome.code == 255
    assert outcome.err.splitlines() == [
        f"ERROR: Backup job failed - {text}",
        f"TASK ERROR: {text}",
    ]


@pytest.mark.slow
def test_variable_left_in_a_shell_does_not_move_a_nodes_backups(
    lab: Path, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert command("--root", lab, 100).code == 0
    assert list((lab / "var/lib/vz/dump").glob("*.vma"))


@pytest.mark.slow
def test_job_to_a_file_loads_nothing_of_servers_before_it_needs_it() -> None:
    heavy = ("numpy", "cryptography", "h2", "vzdump_qemu.stores.pbs")
    code = (
        "import sys\n"
        "import vzdump_qemu.cli.job\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
