"""A simulated QEMU and a backup server as processes: ``backup`` over TLS, then a restore."""

from __future__ import annotations

import os
import random
import select
import shlex
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.blocking_client import BlockingClient, open_monitor
from vzdump_qemu.formats.pbs import (
    BackupGroup,
    BackupRef,
    BackupType,
    EncryptionKey,
    Fingerprint,
    Namespace,
    Repository,
    ScryptKdf,
    bare_key_file,
    encode_key_file,
    protect_key_file,
    unlock_key_file,
    unwrap_key,
)
from vzdump_qemu.secret import Secret
from vzdump_qemu.stores.pbs import BackupReader, PbsEndpoint, TlsTrust, make_login
from vzdump_qemu.stores.system import SystemClock

pytestmark = pytest.mark.slow

MIB = 1 << 20
CHUNK = 4 * MIB
FIRST_S = 1_700_000_000
KEY = EncryptionKey(bytes(range(32)))
PASSWORD = "not easily guessed"
SIZES = {"drive-scsi0": 24 * MIB, "drive-scsi1": 9 * MIB + 512}
_FOLDER = Path(sys.executable).parent
_START_S = 20.0
_POLL_S = 0.02
_GUEST = """
[guest]
writes_per_s = 300
seed = 5
keep_point_in_time = "{kept}"

[backup]
bytes_per_s = 50000000
"""


@dataclass
class _Processes:
    """A server, a QEMU with a guest that writes, and what a client of both needs."""

    root: Path
    settings: dict[str, str]
    vm: subprocess.Popen[bytes]
    backup_count: int = 0

    def connect(self) -> BlockingClient:
        return open_monitor(self.root / "qmp")

    def begin(self, qmp: BlockingClient, **arguments: Any) -> Any:
        self.backup_count += 1
        return qmp.ask(
            "backup",
            **{
                "format": "pbs",
                "backup_file": self.settings["PBS_REPOSITORY"],
                "password": self.settings["PBS_PASSWORD"],
                "fingerprint": self.settings["PBS_FINGERPRINT"],
                "backup_id": "100",
                "backup_time": FIRST_S + self.backup_count,
                "config_file": str(self.root / "conf"),
                **arguments,
            },
        )

    def back_up(self, qmp: BlockingClient, **arguments: Any) -> dict[str, Any]:
        uuid = self.begin(qmp, use_dirty_bitmap=True, **arguments)["UUID"]
        while (status := qmp.ask("query-backup"))["status"] == "active":
            assert self.vm.poll() is None
            select.select([], [], [], _POLL_S)
        assert status["uuid"] == uuid
        assert status["status"] == "done", status
        found: dict[str, Any] = status
        return found

    @asynccontextmanager
    async def reader(
        self, number: int, key: EncryptionKey | None = None
    ) -> AsyncIterator[BackupReader]:
        repository = Repository.parse(self.settings["PBS_REPOSITORY"])
        clock = SystemClock()
        secret = Secret(self.settings["PBS_PASSWORD"])
        endpoint = PbsEndpoint(
            repository,
            trust=TlsTrust(fingerprint=Fingerprint.parse(self.settings["PBS_FINGERPRINT"])),
            login=make_login(repository.auth_id, secret, clock),
            clock=clock,
        )
        group = BackupGroup(backup_type=BackupType.VM, backup_id="100")
        backup = BackupRef(backup_group=group, backup_time_s=FIRST_S + number)
        reader = await BackupReader.open(endpoint, Namespace(), backup, key=key)
        try:
            yield reader
        finally:
            await reader.close()

    async def check_restored(self, reader: BackupReader) -> None:
        """Every disk of a backup is what QEMU kept of the instant of the last one."""
        for name, size_bytes in SIZES.items():
            path = self.root / "restored"
            path.write_bytes(b"")
            with path.open("r+b") as target:
                target.truncate(size_bytes)
                await reader.restore_disk(f"{name}.img.fidx", target.fileno(), is_zeroed=True)
            kept = (self.root / "kept" / f"{name}.raw").read_bytes()
            assert path.read_bytes() == kept
            assert (await reader.verify_disk(f"{name}.img.fidx")).size_bytes == size_bytes

    @property
    def listed(self) -> list[str]:
        return sorted(path.name for path in (self.root / "ds/tank/vm/100").glob("20*"))


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[_Processes]:
    (tmp_path / "conf").write_text("cores: 2\n")
    (tmp_path / "script.toml").write_text(_GUEST.format(kept=tmp_path / "kept"))
    drives: list[str] = []
    for number, (name, size_bytes) in enumerate(SIZES.items()):
        path = tmp_path / f"{name}.raw"
        # The first half is noise, the other zeroes.
        path.write_bytes(random.Random(number).randbytes(size_bytes // 2))
        os.truncate(path, size_bytes)
        drives += ["-drive", f"if=none,id={name},file={path},format=raw"]
        drives += ["-device", f"scsi-hd,drive={name},id=scsi{number}"]
    qemu_line = [
        *(str(_FOLDER / "vzsim-qemu"), "-id", "100", "-no-shutdown"),
        *("-chardev", f"socket,id=qmp,path={tmp_path}/qmp,server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control", "-vzsim", f"script={tmp_path}/script.toml"),
        *drives,
    ]
    server_line = [str(_FOLDER / "vzsim"), "serve", "--pbs", str(tmp_path / "ds")]
    with (
        subprocess.Popen(server_line, stdout=subprocess.PIPE, text=True) as server,
        subprocess.Popen(qemu_line) as vm,
    ):
        try:
            assert server.stdout is not None
            lines = [next(server.stdout) for _ in range(3)]
            settings = dict(shlex.split(line)[0].split("=", 1) for line in lines)
            while not (tmp_path / "qmp").exists():
                assert vm.poll() is None
                select.select([], [], [], _POLL_S)
            yield _Processes(tmp_path, settings, vm)
        finally:
            vm.kill()
            server.kill()


async def test_backups_of_a_writing_guest_are_restored_as_it_was(processes: _Processes) -> None:
    with processes.connect() as qmp:
        status = processes.back_up(qmp)
        total_bytes = sum(SIZES.values())
        assert status["total"] == status["dirty"] == status["transferred"] == total_bytes
        async with processes.reader(1) as reader:
            assert await reader.read_blob("qemu-server.conf.blob") == b"cores: 2\n"
            await processes.check_restored(reader)
        # The guest went on writing; then it stands still, and nothing changes any more.
        qmp.ask("stop")
        processes.back_up(qmp)
        infos = qmp.ask("query-pbs-bitmap-info")
        assert [info["action"] for info in infos] == ["used", "used"]
        async with processes.reader(2) as reader:
            await processes.check_restored(reader)
            sent = reader.manifest.unprotected.upload_stats
        # Each disk's chunk of zeroes beside the chunks that the guest wrote to.
        changed_count = sum(-(-info["dirty"] // CHUNK) for info in infos)
        assert sent is not None and sent.count == changed_count + 2
        assert processes.back_up(qmp)["dirty"] == 0
        async with processes.reader(3) as reader:
            sent = reader.manifest.unprotected.upload_stats
            assert sent is not None and (sent.count, sent.duplicate_count) == (2, 2)
            await processes.check_restored(reader)
        qmp.ask("quit")
    assert processes.vm.wait(_START_S) == 0


async def test_encrypted_backup_is_restored_with_the_key_under_the_master_key(
    processes: _Processes,
) -> None:
    master = rsa.generate_private_key(public_exponent=65537, key_size=3072)
    public = master.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    private = master.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    root = processes.root
    (root / "master.pem").write_bytes(public)
    bare = bare_key_file(KEY, created_s=FIRST_S, modified_s=FIRST_S)
    kdf = ScryptKdf(salt=bytes(range(32)))
    protected = protect_key_file(bare, PASSWORD.encode(), kdf, iv=bytes(16))
    (root / "key").write_bytes(encode_key_file(protected))
    given = {"keyfile": str(root / "key"), "master_keyfile": str(root / "master.pem")}
    with processes.connect() as qmp:
        refusal = processes.begin(qmp, key_password="wrong words", **given)
        assert refusal["desc"].startswith("proxmox_backup_new failed: wrong passphrase")
        processes.back_up(qmp, key_password=PASSWORD, **given)
    async with processes.reader(2, key=KEY) as reader:
        wrapped = await reader.read_blob("rsa-encrypted.key.blob")
        key = unlock_key_file(unwrap_key(private, wrapped))
    assert key == KEY
    async with processes.reader(2, key=key) as reader:
        await processes.check_restored(reader)
        assert {entry.crypt_mode.is_encrypted for entry in reader.manifest.entries} == {True}
    for chunk in (root / "ds/tank/.chunks").glob("*/*"):
        assert chunk.read_bytes()[:8].hex() in ("7b6785be222d4cf0", "e6591bbf0bbfd80b")


def test_server_forgets_the_backup_of_a_process_that_is_cancelled_or_killed(
    processes: _Processes,
) -> None:
    with processes.connect() as qmp:
        processes.begin(qmp, speed=CHUNK)
        assert len(processes.listed) == 1
        assert qmp.ask("backup-cancel") == {}
        wait_until_forgotten(processes)
        processes.begin(qmp, speed=CHUNK)
        assert len(processes.listed) == 1
        processes.vm.kill()
        processes.vm.wait(_START_S)
        wait_until_forgotten(processes)


def wait_until_forgotten(processes: _Processes) -> None:
    """The server notices the end of a connection by and by."""
    deadline_s = time.monotonic() + _START_S
    while processes.listed:
        assert time.monotonic() < deadline_s
        select.select([], [], [], _POLL_S)


def test_refused_connections_fail_the_command(processes: _Processes) -> None:
    repository = processes.settings["PBS_REPOSITORY"]
    port = Repository.parse(repository).port
    with processes.connect() as qmp:
        for given, text in (
            ({"fingerprint": ":".join(["00"] * 32)}, "Certificate fingerprint was not confirmed."),
            ({"fingerprint": ""}, "Certificate fingerprint was not confirmed."),
            ({"backup_file": repository.replace(str(port), "1")}, "unable to connect to 127.0.0.1"),
        ):
            text = f"backup connect failed: command error: {text}"
            assert processes.begin(qmp, **given)["desc"].startswith(text)
        assert qmp.ask("query-backup") == {"finishing": False}
        assert processes.listed == []
