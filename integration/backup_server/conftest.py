"""A lab whose storage `pbs1` is a backup server on the loopback, and what reads backups back.

Owns the storage's section and secrets, and the server's life.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.real_lab import Ended, RealLab
from integration.stock_qemu.monitor import Monitor
from vzdump_qemu.formats.pbs import (
    BackupGroup,
    BackupRef,
    BackupType,
    EncryptionKey,
    Namespace,
    bare_key_file,
    encode_key_file,
)
from vzdump_qemu.stores.pbs import (
    BackupReader,
    DatastoreCalls,
    ListedBackup,
    PbsEndpoint,
    Secret,
    TlsTrust,
    make_login,
)
from vzdump_qemu.stores.system import SystemClock
from vzsim.fakepbs import PbsConfig, PbsServeOptions, ServedPbs, serving

STORAGE_ID = "pbs1"
KEY = EncryptionKey(bytes(range(32)))
GROUP = BackupGroup(backup_type=BackupType.VM, backup_id="100")


@dataclass
class PbsLab:
    """A lab with a backup server."""

    lab: RealLab
    served: ServedPbs
    namespace: str = ""
    is_user: bool = False

    def write_storage(self, **options: str) -> None:
        """The section of the storage and its password; further options as they are."""
        served, repository = self.served, self.served.repository
        account = "root@pam" if self.is_user else str(repository.auth_id)
        lines = {
            "server": repository.host,
            "port": str(repository.port),
            "datastore": repository.datastore,
            "username": account,
            "fingerprint": served.fingerprint,
            "content": "backup",
            **({"namespace": self.namespace} if self.namespace else {}),
            **options,
        }
        path = self.lab.root / "etc/pve/storage.cfg"
        before = path.read_text().partition("\npbs: ")[0]
        section = "".join(f"\t{name} {value}\n" for name, value in lines.items())
        path.write_text(f"{before}\npbs: {STORAGE_ID}\n{section}")
        secret = served.password if self.is_user else served.token_secret
        self.secret_path("pw").write_text(f"{secret}\n")

    def secret_path(self, suffix: str) -> Path:
        """A secret beside the storage's section."""
        directory = self.lab.root / "etc/pve/priv/storage"
        directory.mkdir(parents=True, exist_ok=True)
        return directory / f"{STORAGE_ID}.{suffix}"

    def write_key(self, key: EncryptionKey = KEY) -> None:
        """Encrypt from now on."""
        key_file = bare_key_file(key, created_s=1_700_000_000, modified_s=1_700_000_000)
        self.secret_path("enc").write_bytes(encode_key_file(key_file))

    async def back_up(self, *words: object, code: int = 0) -> str:
        """One backup by the command line; its log."""
        words = ("--root", self.lab.root, 100, "--storage", STORAGE_ID, *words)
        ended = await asyncio.to_thread(self.lab.tool, *words)
        assert ended.code == code, ended.err
        for secret in (self.served.token_secret, self.served.password):
            assert secret not in ended.err + ended.out
        return ended.err

    async def must(self, *words: object) -> Ended:
        """A command of the lab while the server goes on."""
        return await asyncio.to_thread(self.lab.must, *words)

    @property
    def endpoint(self) -> PbsEndpoint:
        """The server, by our own client."""
        clock, auth_id = SystemClock(), self.served.repository.auth_id
        return PbsEndpoint(
            self.served.repository,
            trust=TlsTrust(fingerprint=self.served.listener.fingerprint),
            login=make_login(auth_id, Secret(self.served.token_secret), clock),
            clock=clock,
        )

    @property
    def calls(self) -> DatastoreCalls:
        """Everything that is asked of a datastore."""
        return DatastoreCalls(self.endpoint, Namespace.parse(self.namespace))

    async def backups(self) -> list[ListedBackup]:
        """Those of the VM, oldest first."""
        listed = await self.calls.list_backups(GROUP)
        return sorted(listed, key=lambda one: one.backup.backup_time_s)

    async def restored(
        self, *, key: EncryptionKey | None = None, number: int = -1
    ) -> Mapping[str, bytes]:
        """Content of every file of a backup by its name without suffixes, the last one's."""
        backup: BackupRef = (await self.backups())[number].backup
        namespace = Namespace.parse(self.namespace)
        reader = await BackupReader.open(self.endpoint, namespace, backup, key=key)
        found = {}
        try:
            for entry in reader.manifest.entries:
                name = entry.file_name
                if name.endswith(".img.fidx"):
                    path = self.lab.root / "restored.raw"
                    path.write_bytes(b"")
                    os.truncate(path, entry.size_bytes)
                    fd = os.open(path, os.O_WRONLY)
                    try:
                        await reader.restore_disk(name, fd, is_zeroed=True)
                    finally:
                        os.close(fd)
                    found[name.removesuffix(".img.fidx")] = path.read_bytes()
                elif name != "rsa-encrypted.key.blob":
                    found[name.removesuffix(".blob")] = await reader.read_blob(name)
        finally:
            await reader.close()
        return found

    def image_bytes(self, index: int = 0, image_format: str = "raw") -> bytes:
        """What a disk holds now."""
        path = self.lab.image(index, image_format=image_format)
        if image_format == "raw":
            return path.read_bytes()
        raw = self.lab.root / f"compare-{index}.raw"
        subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", path, raw], check=True)
        return raw.read_bytes()

    async def write(self, key: str, offset_bytes: int, length_bytes: int) -> None:
        """As the guest does."""

        backend = "/virtio-backend" if key.startswith("virtio") else ""

        def act() -> None:
            with Monitor(self.lab.run_directory / "100.qmp") as monitor:
                device = f"/machine/peripheral/{key}{backend}"
                monitor.write_as_guest(device, offset_bytes, length_bytes)

        await asyncio.to_thread(act)

    def qemu_read_bytes(self) -> int:
        """What QEMU has read so far, of everything, as the kernel counts it."""
        [process] = self.lab.processes()
        lines = (Path("/proc") / str(process) / "io").read_text().splitlines()
        return int(dict(line.split(": ") for line in lines)["rchar"])

    def assert_let_go(self) -> None:
        """QEMU has nothing of ours but bitmaps; neither has the lab."""
        with Monitor(self.lab.run_directory / "100.qmp") as monitor:
            assert not {name for name in monitor.node_names() if name.startswith("vzdump-")}
            assert monitor.execute("query-block-exports") == []
            assert monitor.execute("query-status")["status"] == "running"
        assert not list(self.lab.image().parent.glob("*fleece*"))
        assert "lock:" not in self.lab.config().read_text()
        assert not list((self.lab.root / "var/lib/vzdump-qemu").glob("*.journal"))


@pytest.fixture
async def pbs_lab(real_lab: RealLab) -> AsyncIterator[PbsLab]:
    """A lab without VMs yet, and a server that keeps all in memory."""
    config = PbsConfig(refusal_delay_s=0.0)
    async with serving(PbsServeOptions(directory=None, config=config)) as served:
        yield PbsLab(real_lab, served)


def fill(path: Path, offset_bytes: int, length_bytes: int) -> None:
    """Bytes that do not compress, at that place of a raw image."""
    with open(path, "r+b") as file:
        file.seek(offset_bytes)
        file.write(os.urandom(length_bytes))
