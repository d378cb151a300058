"""A backup server as a process of its own, as `vzsim serve --pbs` starts it, and backups on it."""

from __future__ import annotations

import asyncio
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.stores.pbs.running_server import PatternDisk
from vzdump_qemu.disk_ports import DiskOrigin
from vzdump_qemu.formats.pbs import (
    BackupGroup,
    BackupRef,
    BackupType,
    Fingerprint,
    Namespace,
    Repository,
)
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.secret import Secret
from vzdump_qemu.stores.pbs import BackupKey, PbsDisk, PbsUploader
from vzdump_qemu.stores.pbs.uploads import make_endpoint
from vzdump_qemu.stores.system import SystemClock

MIB = 1 << 20
DATASTORE = "tank"


@dataclass(frozen=True)
class ServedPbs:
    """A server that is up.

    Attributes:
        environment: what a client is told: repository, fingerprint and password.
        directory: of its datastores.
    """

    environment: Mapping[str, str]
    directory: Path

    @property
    def repository(self) -> str:
        return self.environment["PBS_REPOSITORY"]

    @property
    def port(self) -> int:
        return Repository.parse(self.repository).port

    def target(self) -> PbsTarget:
        return PbsTarget(
            repository=Repository.parse(self.repository),
            password=Secret(self.environment["PBS_PASSWORD"]),
            fingerprint=Fingerprint.parse(self.environment["PBS_FINGERPRINT"]),
        )

    def add_to(self, root: Path, storage_id: str, *lines: str) -> None:
        """Make it a storage of a lab."""
        secrets = root / "etc/pve/priv/storage"
        secrets.mkdir(parents=True, exist_ok=True)
        (secrets / f"{storage_id}.pw").write_text(self.environment["PBS_PASSWORD"] + "\n")
        options = (
            "server 127.0.0.1",
            f"port {self.port}",
            f"datastore {DATASTORE}",
            f"username {Repository.parse(self.repository).auth_id}",
            f"fingerprint {self.environment['PBS_FINGERPRINT']}",
            *lines,
        )
        with open(root / "etc/pve/storage.cfg", "a", encoding="utf-8") as file:
            file.write(f"\npbs: {storage_id}\n" + "".join(f"\t{line}\n" for line in options))

    def announce(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the environment tell of it, and of nothing else."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("PBS_ENCRYPTION_PASSWORD", raising=False)

    def chunk_paths(self) -> list[Path]:
        return sorted(path for path in (self.directory / DATASTORE / ".chunks").glob("*/*"))


@contextmanager
def served_pbs(directory: Path, script: str = "") -> Iterator[ServedPbs]:
    """A server on a free port of the loopback as long as the block.

    Args:
        script: what shall go wrong, in TOML.
    """
    argv = [sys.executable, "-m", "vzsim.cli", "serve", "--pbs", str(directory)]
    if script:
        directory.mkdir(exist_ok=True)
        script_path = directory / "script.toml"
        script_path.write_text(script)
        argv += ["--script", str(script_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told: dict[str, str] = {}
            for line in process.stdout:
                name, equals, value = line.partition("=")
                if not equals:
                    break
                [told[name]] = shlex.split(value)
            yield ServedPbs(environment=told, directory=directory)
        finally:
            process.terminate()


def upload(
    target: PbsTarget,
    disks: Mapping[str, bytes],
    configs: Sequence[tuple[str, bytes]],
    *,
    backup_id: str = "100",
    time_s: int = 1_700_000_000,
    key: BackupKey | None = None,
) -> BackupRef:
    """Make a backup there by our own client; its disks by device id."""
    group = BackupGroup(backup_type=BackupType.VM, backup_id=backup_id)
    backup = BackupRef(backup_group=group, backup_time_s=time_s)
    asyncio.run(_upload(target, backup, disks, configs, key=key))
    return backup


async def _upload(
    target: PbsTarget,
    backup: BackupRef,
    disks: Mapping[str, bytes],
    configs: Sequence[tuple[str, bytes]],
    *,
    key: BackupKey | None,
) -> None:
    clock = SystemClock()
    uploader = PbsUploader(
        make_endpoint(target, clock=clock),
        clock=clock,
        open_nbd=lambda origin: PatternDisk(disks[origin.device_id]),
    )
    upload = await uploader.open(
        backup,
        [PbsDisk(device_id=name, size_bytes=len(data)) for name, data in disks.items()],
        configs=configs,
        namespace=Namespace(),
        key=key,
    )
    try:
        transfer = await upload.begin(
            [
                DiskOrigin(
                    device_id=name, size_bytes=len(data), nbd_socket="memory", export_name=name
                )
                for name, data in disks.items()
            ]
        )
        await transfer.finish()
        await upload.finish()
    finally:
        await upload.abort()
