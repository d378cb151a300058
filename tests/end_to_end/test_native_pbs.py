"""QEMU's own job to a backup server, all of it in processes: the tool, a QEMU and the server."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.end_to_end.lab import Ended, Lab, names_of
from vzdump_qemu.node.lab import stop_vm

pytestmark = pytest.mark.slow

STORAGE = "pbs1"
RESTORED_VMID = 200
PBS_LINE = re.compile(r"^(PBS_\w+)='?([^'\n]+)'?$")


class Server:
    """A server's process, and the lab's storage that leads to it."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self._lab = lab
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vzsim.cli", "serve", "--pbs", str(directory)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        said: dict[str, str] = {}
        while len(said) < 3:
            line = self._process.stdout.readline()
            assert line, "the server ended"
            if found := PBS_LINE.match(line):
                said[found[1]] = found[2]
        self.password = said["PBS_PASSWORD"]
        self.fingerprint = said["PBS_FINGERPRINT"]
        user, _, place = said["PBS_REPOSITORY"].rpartition("@")
        host, port, datastore = place.split(":")
        self._section = {
            "server": host,
            "port": port,
            "datastore": datastore,
            "username": user,
            "content": "backup",
        }
        self._config = lab.root / "etc/pve/storage.cfg"
        self._plain_config = self._config.read_text()
        self._secrets = lab.root / "etc/pve/priv/storage"
        self._secrets.mkdir(parents=True, exist_ok=True)
        self.configure()

    def secret_path(self, suffix: str) -> Path:
        return self._secrets / f"{STORAGE}.{suffix}"

    def configure(self, *, password: str = "", **changes: str) -> None:
        """Write the section anew, with other values where some are given."""
        section = {**self._section, "fingerprint": self.fingerprint, **changes}
        lines = [f"\t{name} {value}\n" for name, value in section.items()]
        self._config.write_text(f"{self._plain_config}\npbs: {STORAGE}\n{''.join(lines)}")
        self.secret_path("pw").write_text(f"{password or self.password}\n")

    def reset(self) -> None:
        for path in self._secrets.iterdir():
            path.unlink()
        self.configure()

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=20)
        self._config.write_text(self._plain_config)


@pytest.fixture(scope="module")
def shared_server(shared_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(shared_lab, tmp_path_factory.mktemp("server"))
    yield started
    started.close()


@pytest.fixture
def server(lab: Lab, shared_server: Server) -> Iterator[Server]:
    yield shared_server
    shared_server.reset()


def _back_up(lab: Lab, *words: object) -> Ended:
    """One backup to the server; a second's names are taken by the backup before."""
    return lab.tool("--root", lab.root, 100, "--storage", STORAGE, *words)


def _images(lab: Lab, vmid: int) -> set[bytes]:
    directory = lab.root / f"var/lib/vz/images/{vmid}"
    return {path.read_bytes() for path in directory.glob("*.raw")}


def _restore_and_compare(lab: Lab) -> None:
    """The newest backup, read by the tool, is the disks of the VM as they are now."""
    lab.must("verify", f"{STORAGE}:backup/vm/100/latest", "--root", lab.root)
    name = f"{STORAGE}:backup/vm/100/latest"
    lab.must("restore", name, RESTORED_VMID, "--root", lab.root, "--force")
    restored = _images(lab, RESTORED_VMID)
    assert len(restored) == 2 and restored == _images(lab, 100)


def _assert_nothing_told(lab: Lab, secret: str, *ended: Ended) -> None:
    for one in ended:
        assert secret not in one.out and secret not in one.err
    for place in ("var/log", "var/lib/vzdump-qemu", "var/tmp"):
        for path in (lab.root / place).rglob("*"):
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), path


def _assert_stored(ended: Ended) -> None:
    assert ended.code == 0, ended.err
    assert ended.err.splitlines()[-1] == "TASK OK"


def test_second_backup_sends_what_changed_and_both_restore_whole(lab: Lab, server: Server) -> None:
    lab.start()
    first = _back_up(lab)
    _assert_stored(first)
    log = lab.log()
    assert "INFO: scsi0: dirty-bitmap status: created new" in log
    assert any(re.match(r"INFO: creating Proxmox Backup Server archive 'vm/100/", x) for x in log)
    _restore_and_compare(lab)
    with lab.connect() as client:
        write = 'qemu-io drive-scsi0 "write -P 0x5a 1M 64k"'
        client.ask("human-monitor-command", **{"command-line": write})
    second = _back_up(lab)
    _assert_stored(second)
    log = lab.log()
    assert "INFO: virtio1: dirty-bitmap status: OK (drive clean)" in log
    [fast] = [line for line in log if "fast incremental mode" in line]
    assert fast.startswith("INFO: using fast incremental mode (dirty-bitmap), 4.0 MiB dirty of ")
    assert any("backup was done incrementally, reused" in line for line in log)
    _restore_and_compare(lab)
    assert any(b"\x5a" * 65536 in image for image in _images(lab, RESTORED_VMID))
    _assert_nothing_told(lab, server.password, first, second)
    lab.assert_clean("running")


def test_encrypted_backup_restores_with_its_key(lab: Lab, server: Server) -> None:
    lab.must("key", "create", server.secret_path("enc"), "--kdf", "none")
    server.secret_path("master.pem").write_bytes(_master_key(4096))
    lab.start()
    _assert_stored(_back_up(lab))
    assert "INFO: enabling encryption with master key feature" in lab.log()
    _restore_and_compare(lab)


def test_key_under_a_passphrase_goes_to_qemu_with_it_and_is_never_told(
    lab: Lab, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PBS_ENCRYPTION_PASSWORD", "correct horse")
    lab.must("key", "create", server.secret_path("enc"))
    lab.start()
    ended = _back_up(lab)
    _assert_stored(ended)
    _restore_and_compare(lab)
    _assert_nothing_told(lab, "correct horse", ended)


def test_key_without_its_passphrase_is_refused_before_the_guest_is_touched(
    lab: Lab, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as known:
        known.setenv("PBS_ENCRYPTION_PASSWORD", "correct horse")
        lab.must("key", "create", server.secret_path("enc"))
    lab.start()
    ended = _back_up(lab)
    assert ended.code != 0 and "is protected by a passphrase" in ended.err
    lab.assert_clean("running")


def test_master_key_without_a_key_is_a_warning_and_the_backup_is_plain(
    lab: Lab, server: Server
) -> None:
    server.secret_path("master.pem").write_text("nobody reads it\n")
    ended = _back_up(lab)
    assert ended.code == 0, ended.err
    assert ended.err.splitlines()[-1] == "TASK WARNINGS: 1"
    assert (
        "WARN: backup target storage is configured with master-key, but no encryption key set! "
        "Ignoring master key settings and creating unencrypted backup."
    ) in lab.log()
    lab.assert_clean("")


def test_stopped_vm_is_backed_up_in_the_words_of_2020(lab: Lab, server: Server) -> None:
    _assert_stored(_back_up(lab, "--log-style", "2020"))
    log = lab.log()
    assert f"INFO: creating pbs archive on storage '{STORAGE}'" in log
    assert "INFO: pbs upload finished" in log
    _restore_and_compare(lab)
    lab.assert_clean("")


def test_disk_less_vm_is_stored_by_our_own_client(lab: Lab, server: Server) -> None:
    lines = lab.config.read_bytes().splitlines(keepends=True)
    lab.config.write_bytes(b"".join(x for x in lines if not x.startswith((b"scsi0", b"virtio1"))))
    _assert_stored(_back_up(lab))
    log = lab.log()
    assert log.index("INFO: backup contains no disks") < log.index("INFO: starting diskless backup")
    lab.must("verify", f"{STORAGE}:backup/vm/100/latest", "--root", lab.root)
    assert lab.pid() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("stage", ["JobStartIssued", "JobAccepted", "VmContinued"])
def test_run_that_is_ended_leaves_no_job_and_the_next_is_whole(
    lab: Lab, server: Server, stage: str, number: signal.Signals
) -> None:
    lab.start("[backup]\nbytes_per_s = 262144\n")

    def end(process: subprocess.Popen[str]) -> None:
        process.send_signal(number)

    code, told = lab.back_up_and_act({stage: end}, "--storage", STORAGE)
    assert code != 0 and stage in names_of(told)
    lab.await_no_journal()
    lab.assert_clean("running")
    lab.stop()
    lab.start()
    ended = _back_up(lab)
    _assert_stored(ended)
    _restore_and_compare(lab)
    _assert_nothing_told(lab, server.password, ended)


def _master_key(bit_count: int) -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=bit_count).public_key()
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(encoding, form)


def _plain_listener() -> socket.socket:
    """Somebody who listens and speaks no TLS."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20)
    return listener


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("mode", ["snapshot", "stop"])
@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("fingerprint", "fingerprint"),
        ("password", "authentication failed"),
        ("port", "127.0.0.1"),
        ("datastore", "datastore"),
        ("key", "no encryption key file found!"),
        ("broken key", "key"),
        ("small master key", "master key of 1024 bits is too small"),
    ],
)
def test_server_that_cannot_be_used_is_told_before_the_guest_is_touched(
    lab: Lab, server: Server, case: str, text: str, mode: str
) -> None:
    match case:
        case "fingerprint":
            server.configure(fingerprint=":".join(["ab"] * 32))
        case "password":
            server.configure(password="never-to-be-told")
        case "port":
            server.configure(port=str(_closed_port()))
        case "datastore":
            server.configure(datastore="absent")
        case "key":
            server.configure(**{"encryption-key": "1"})
        case "broken key":
            server.secret_path("enc").write_text("{}")
        case "small master key":
            lab.must("key", "create", server.secret_path("enc"), "--kdf", "none")
            server.secret_path("master.pem").write_bytes(_master_key(1024))
    lab.start()
    pid = lab.pid()
    ended = _back_up(lab, "--mode", mode)
    assert ended.code == 255
    last = ended.err.splitlines()[-1]
    assert last.startswith(f"TASK ERROR: could not activate storage '{STORAGE}': ")
    assert text in last, last
    assert not lab.log_path.exists()
    assert lab.pid() == pid
    lab.assert_clean("running")
    _assert_nothing_told(lab, "never-to-be-told", ended)


def test_server_without_tls_is_told_before_the_guest_is_touched(lab: Lab, server: Server) -> None:
    with _plain_listener() as listener:
        server.configure(port=str(listener.getsockname()[1]))
        lab.start()
        with subprocess.Popen(
            [sys.executable, "-c", f"import socket; {_ANSWER}", str(listener.fileno())],
            pass_fds=[listener.fileno()],
        ):
            ended = _back_up(lab)
    assert ended.code == 255
    last = ended.err.splitlines()[-1]
    assert last.startswith(f"TASK ERROR: could not activate storage '{STORAGE}': ")
    lab.assert_clean("running")


_ANSWER = (
    "import sys; s = socket.socket(fileno=int(sys.argv[1])); c = s.accept()[0]; "
    "c.sendall(b'HTTP/1.1 200 OK\\r\\n\\r\\n'); c.close()"
)


@pytest.fixture(autouse=True)
def _no_restored_vm(lab: Lab) -> Iterator[None]:
    yield
    asyncio.run(stop_vm(str(lab.root), 100))
    config = lab.root / f"etc/pve/qemu-server/{RESTORED_VMID}.conf"
    config.unlink(missing_ok=True)
