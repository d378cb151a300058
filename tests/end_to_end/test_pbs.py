"""Backups to a server and back: real command, real QEMU stand-in, real server process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.end_to_end.lab import TOOL, VMID, Ended, Lab
from tests.pbs_server import MIB, ServedPbs, served_pbs, upload
from vzdump_qemu.formats.pbs import Repository

pytestmark = pytest.mark.slow

CONFIG = b"scsi0: local:100/vm-100-disk-0.raw\n#qmdump#map:scsi0:drive-scsi0:local:raw:\n"
WRONG_PIN = ":".join(["00"] * 32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPbs]:
    with served_pbs(tmp_path_factory.mktemp("pbs")) as served:
        yield served


@pytest.fixture
def pbs(server: ServedPbs, monkeypatch: pytest.MonkeyPatch) -> ServedPbs:
    """The server, known by the environment."""
    server.announce(monkeypatch)
    return server


@pytest.fixture
def storage(lab: Lab, pbs: ServedPbs, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The server as a storage of the lab, whose environment says nothing of it."""
    config = lab.root / "etc/pve/storage.cfg"
    before = config.read_bytes()
    pbs.add_to(lab.root, "bak")
    for name in pbs.environment:
        monkeypatch.delenv(name)
    yield "bak"
    config.write_bytes(before)
    for path in (lab.root / "etc/pve/priv/storage").iterdir():
        path.unlink()


def back_up(lab: Lab, *words: object) -> Ended:
    return lab.tool("--root", lab.root, VMID, *words)


def assert_refused(lab: Lab, ended: Ended, text: str) -> None:
    """One reason, twice as vzdump tells it, and the guest never heard of it."""
    assert ended.code == 255
    assert ended.err.splitlines() == [
        f"ERROR: Backup job failed - {text}",
        f"TASK ERROR: {text}",
    ]
    # No run was begun: there is not even a log.
    assert not lab.log_path.exists()
    lab.assert_clean("running")


def at_server(pbs: ServedPbs, text: str) -> str:
    return f"could not use backup server '{pbs.repository}': {text}"


@contextmanager
def plain_text_server() -> Iterator[int]:
    """A web server without TLS; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_wrong_fingerprint_is_refused_before_the_guest_is_touched(lab: Lab, pbs: ServedPbs) -> None:
    lab.start()
    ended = back_up(lab, "--repository", pbs.repository, "--fingerprint", WRONG_PIN)
    shown = pbs.environment["PBS_FINGERPRINT"]
    place = f"127.0.0.1:{pbs.port}"
    text = f"Certificate fingerprint was not confirmed. ({place} shows {shown})"
    assert_refused(lab, ended, at_server(pbs, text))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PBS_FINGERPRINT")
        ended = back_up(lab, "--repository", pbs.repository)
    text = f"Certificate fingerprint was not confirmed. ({place}: self-signed certificate)"
    assert_refused(lab, ended, at_server(pbs, text))


def test_revoked_token_is_refused_before_the_guest_is_touched(
    lab: Lab, pbs: ServedPbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PBS_PASSWORD", "secret-of-a-token-that-was-revoked")
    lab.start()
    ended = back_up(lab, "--repository", pbs.repository)
    assert_refused(lab, ended, at_server(pbs, "authentication failed"))
    user = Repository.parse(pbs.repository)
    login = f"{user.auth_id.user_id}@127.0.0.1:{pbs.port}:{user.datastore}"
    ended = back_up(lab, "--repository", login)
    text = f"could not use backup server '{login}': permission check failed."
    assert_refused(lab, ended, text)


def test_missing_key_file_is_refused_before_the_guest_is_touched(
    lab: Lab, pbs: ServedPbs, tmp_path: Path
) -> None:
    lab.start()
    path = tmp_path / "none.key"
    ended = back_up(lab, "--repository", pbs.repository, "--keyfile", path)
    text = f"unable to read encryption key '{path}' - No such file or directory"
    assert_refused(lab, ended, at_server(pbs, text))
    lab.must("key", "create", tmp_path / "key", "--kdf", "none")
    master = tmp_path / "none.pem"
    ended = back_up(
        *(lab, "--repository", pbs.repository, "--keyfile", tmp_path / "key"),
        *("--master-pubkey-file", master),
    )
    text = f"unable to read master key '{master}' - No such file or directory"
    assert_refused(lab, ended, at_server(pbs, text))


def test_storages_missing_key_is_refused_before_the_guest_is_touched(
    lab: Lab, storage: str
) -> None:
    with open(lab.root / "etc/pve/storage.cfg", "a", encoding="utf-8") as file:
        file.write("\tencryption-key 1\n")
    lab.start()
    ended = back_up(lab, "--storage", storage)
    text = "encryption configured ('1') but no encryption key file found!"
    assert_refused(lab, ended, f"could not activate storage '{storage}': {text}")


def test_plain_text_server_is_refused_before_the_guest_is_touched(lab: Lab, pbs: ServedPbs) -> None:
    lab.start()
    with plain_text_server() as port:
        repository = f"root@pam!vzdump@127.0.0.1:{port}:tank"
        ended = back_up(lab, "--repository", repository)
    text = f"127.0.0.1:{port} does not speak TLS as needed: "
    assert text in ended.err
    reason = ended.err.splitlines()[-1].rpartition(": ")[2]
    assert reason in ("wrong version number", "record layer failure", "packet length too long")
    assert_refused(lab, ended, f"could not use backup server '{repository}': {text}{reason}")


def test_server_that_is_not_there_is_refused_before_the_guest_is_touched(
    lab: Lab, pbs: ServedPbs
) -> None:
    lab.start()
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    repository = f"root@pam!vzdump@127.0.0.1:{port}:tank"
    ended = back_up(lab, "--repository", repository)
    text = f"unable to connect to 127.0.0.1:{port} - Connect call failed ('127.0.0.1', {port})"
    assert text in ended.err or "Connection refused" in ended.err, ended.err
    assert ended.code == 255
    assert not lab.log_path.exists()
    lab.assert_clean("running")


def test_missing_namespace_is_refused_before_the_guest_is_touched(lab: Lab, pbs: ServedPbs) -> None:
    lab.start()
    ended = back_up(lab, "--repository", pbs.repository, "--ns", "a/b")
    assert_refused(lab, ended, at_server(pbs, "namespace not found"))


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("data_path", ["pull", "native", "offline"])
def test_vm_comes_back_from_the_server_as_it_was(
    data_path: str, encrypted: bool, lab: Lab, pbs: ServedPbs, tmp_path: Path
) -> None:
    words: tuple[object, ...] = ()
    if encrypted:
        words = ("--keyfile", tmp_path / "key")
        lab.must("key", "create", tmp_path / "key", "--kdf", "none")
    if data_path != "offline":
        # Paused, so that the disks stay as the backup found them.
        lab.start(paused=True)
    images = lab.root / "var/lib/vz/images"
    before = [path.read_bytes() for path in sorted((images / str(VMID)).iterdir())]
    done = back_up(lab, "--repository", pbs.repository, "--data-path", data_path, *words)
    assert done.err.splitlines()[-1] == "TASK OK", done.err

    listed = json.loads(lab.must("list", "--json").out)
    name = listed[-1]["path"]
    assert bool(listed[-1]["key"]) is encrypted
    assert lab.must("verify", name, *words).out.endswith(f"{name}: whole\n")
    lab.must("restore", name, 101, "--root", lab.root, "--force", *words)
    assert [path.read_bytes() for path in sorted((images / "101").iterdir())] == before
    remove_vm(lab, 101)
    # A second within which the server takes no other backup of that VM.
    wait_for_next_second(name)


def test_storage_and_volume_id_need_no_environment(lab: Lab, storage: str) -> None:
    lab.start()
    done = back_up(lab, "--storage", storage, "--data-path", "pull")
    assert done.err.splitlines()[-1] == "TASK OK", done.err
    name = json.loads(lab.must("list", lab.root, "--storage", storage, "--json").out)[-1]["path"]
    assert name.startswith(f"{storage}:backup/vm/{VMID}/")
    lab.must("verify", name, "--root", lab.root)
    lab.must("restore", name, 101, "--root", lab.root)
    remove_vm(lab, 101)
    wait_for_next_second(name)


def test_vm_known_by_its_sockets_goes_to_a_server(lab: Lab, pbs: ServedPbs, tmp_path: Path) -> None:
    lab.start()
    sockets = lab.run_directory / f"{VMID}"
    done = lab.tool(
        *("--qmp", f"{sockets}.qmp", "--agent", f"{sockets}.qga", "--vmid", 4711),
        *("--state-dir", tmp_path),
    )
    assert done.err.splitlines()[-1] == "TASK OK", done.err
    lab.must("verify", "vm/4711/latest")
    lab.assert_clean("running")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_restore_leaves_nothing(
    number: signal.Signals, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = '[[fault]]\nkind = "hang"\nendpoint = "GET /chunk"\nfirst = 2\ncount = 0\n'
    images = lab.root / "var/lib/vz/images"
    with served_pbs(tmp_path / "pbs", script) as served:
        served.announce(monkeypatch)
        upload(
            served.target(), {"drive-scsi0": os.urandom(12 * MIB)}, [("qemu-server.conf", CONFIG)]
        )
        words = ("restore", "vm/100/latest", "101", "--root", str(lab.root))
        with subprocess.Popen([*TOOL, *words], stderr=subprocess.PIPE, text=True) as process:
            deadline_s = time.monotonic() + 30
            while not has_data(images / "101"):
                assert time.monotonic() < deadline_s, "the restore does not begin"
                time.sleep(0.02)
            os.kill(process.pid, number)
            _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip() == "ERROR: interrupted by signal"
    assert not (images / "101").exists()
    assert not (lab.config.parent / "101.conf").exists()


def has_data(directory: Path) -> bool:
    with suppress(OSError):
        return any(path.stat().st_blocks for path in directory.iterdir())
    return False


def remove_vm(lab: Lab, vmid: int) -> None:
    (lab.config.parent / f"{vmid}.conf").unlink()
    directory = lab.root / f"var/lib/vz/images/{vmid}"
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def wait_for_next_second(name: str) -> None:
    from vzdump_qemu.formats.pbs import BackupRef

    backup = BackupRef.parse(name.rpartition("backup/")[2])
    while time.time() < backup.backup_time_s + 1:
        time.sleep(0.05)
