"""The `PbsUploads` port on our own client.

Owns what becomes of a `PbsTarget`: trust, login and key, and the name of a backup's content by
which a later run recognises it. The protocol is `uploader`'s. Source: PBS formats, sections 4 and
8; failure modes, rows 71, 72 and 82.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from vzdump_qemu.disk_ports import DiskOrigin
from vzdump_qemu.errors import BackupError, PbsError
from vzdump_qemu.formats.pbs import BackupGroup, BackupRef, BackupType, disk_index_name
from vzdump_qemu.pbs_ports import (
    DiskSize,
    IndexReuse,
    PbsFinished,
    PreviousAtServer,
)
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.ports import Clock, DiskTransfer
from vzdump_qemu.stores.pbs.backup_management import ClientManagement
from vzdump_qemu.stores.pbs.endpoint import PbsEndpoint
from vzdump_qemu.stores.pbs.final_backup import FinalBackups, content_id
from vzdump_qemu.stores.pbs.key_loading import (
    BackupKey,
    check_master_key,
    load_backup_key,
)
from vzdump_qemu.stores.pbs.login import make_login
from vzdump_qemu.stores.pbs.management import DatastoreCalls
from vzdump_qemu.stores.pbs.moving import BeginMoving, OpenReader
from vzdump_qemu.stores.pbs.tls import Stream, TlsTrust
from vzdump_qemu.stores.pbs.uploader import PbsDisk, PbsUpload, PbsUploader
from vzdump_qemu.stores.system import run_blocking

# Asked for where the answer does not matter: nothing needs to be listed for it.
_NO_GROUP: Final = BackupGroup(backup_type=BackupType.VM, backup_id="0")

FindKey: TypeAlias = Callable[[PbsTarget], Awaitable[BackupKey | None]]


class ClientUploads:
    """`vzdump_qemu.pbs_ports.PbsUploads`, spoken by our own client.

    Args:
        open_nbd: opens an origin with an NBD socket. It blocks, and raises DiskReadError.
        open_stream: makes connections in another way than by TLS over TCP, for simulations.
        begin_moving: moves disks without threads, likewise.
        find_key: has the key of a target in another way than from this machine's files, likewise.
        chance: returns that many bytes that nobody can foresee.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        open_nbd: OpenReader,
        open_stream: Callable[[], Awaitable[Stream]] | None = None,
        begin_moving: BeginMoving | None = None,
        find_key: FindKey | None = None,
        chance: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._clock = clock
        self._open_nbd = open_nbd
        self._open_stream = open_stream
        self._begin_moving = begin_moving
        self._find_key = find_key or load_key
        self._chance = chance

    async def check(self, target: PbsTarget) -> None:
        """As the port says: one question that needs the login, and the key unlocked."""
        key = await self._find_key(target)
        if key is not None:
            check_master_key(key, now_s=int(self._clock.wall_s()))
        calls = DatastoreCalls(self._endpoint(target), target.namespace)
        await calls.status()
        if not target.namespace.is_root:
            # That it is missing would else be told once the guest was touched.
            await calls.list_backups(_NO_GROUP)

    def manage(self, target: PbsTarget) -> ClientManagement:
        """As the port says."""
        calls = DatastoreCalls(self._endpoint(target), target.namespace)
        return ClientManagement(calls, find_key=lambda: self._find_key(target))

    async def last_time_s(self, target: PbsTarget, group: BackupGroup) -> int:
        """As the port says."""
        listed = await DatastoreCalls(self._endpoint(target), target.namespace).list_backups(group)
        return max((one.backup.backup_time_s for one in listed), default=0)

    async def connect(self, target: PbsTarget, backup: BackupRef) -> ClientUpload:
        """As the port says."""
        uploader = PbsUploader(
            self._endpoint(target),
            clock=self._clock,
            open_nbd=self._open_nbd,
            chance=self._chance,
            begin_moving=self._begin_moving,
        )
        key = await self._find_key(target)
        return ClientUpload(await uploader.connect(backup, namespace=target.namespace, key=key))

    async def prove(
        self,
        target: PbsTarget,
        backup: BackupRef,
        disks: Sequence[DiskSize],
        config_names: Sequence[str],
    ) -> PbsFinished:
        """As the port says."""
        key = await self._find_key(target)
        final = FinalBackups(
            self._endpoint(target),
            target.namespace,
            key=None if key is None else key.key,
            clock=self._clock,
        )
        return await final.prove(backup, disks, config_names)

    def _endpoint(self, target: PbsTarget) -> PbsEndpoint:
        return make_endpoint(target, clock=self._clock, open_stream=self._open_stream)


def make_endpoint(
    target: PbsTarget,
    *,
    clock: Clock,
    open_stream: Callable[[], Awaitable[Stream]] | None = None,
) -> PbsEndpoint:
    """The server of a target, with its trust and our login."""
    repository = target.repository
    return PbsEndpoint(
        repository,
        trust=TlsTrust(fingerprint=target.fingerprint),
        login=make_login(repository.auth_id, target.password, clock),
        clock=clock,
        open_stream=open_stream,
    )


def make_management(target: PbsTarget, *, clock: Clock) -> ClientManagement:
    """The `PbsManagement` of a target, for verbs that make no backup."""
    calls = DatastoreCalls(make_endpoint(target, clock=clock), target.namespace)
    return ClientManagement(calls, find_key=lambda: load_key(target))


async def load_key(target: PbsTarget) -> BackupKey | None:
    """The key of a target; None for plain backups. Raises PbsKeyError."""
    if not target.key_path:
        return None
    # Deriving a key from a passphrase takes a second of a core.
    return await run_blocking(
        lambda: load_backup_key(
            target.key_path,
            passphrase=target.key_passphrase,
            master_path=target.master_key_path,
        )
    )


class ClientUpload:
    """`vzdump_qemu.pbs_ports.PbsUpload`."""

    def __init__(self, upload: PbsUpload) -> None:
        self._upload = upload
        self._transfer: DiskTransfer | None = None

    @property
    def previous(self) -> PreviousAtServer:
        """As the port says."""
        found = self._upload.previous
        if found.manifest is None:
            return PreviousAtServer(refusal=found.reason)
        return PreviousAtServer(backup_id=content_id(found.manifest))

    async def begin_indexes(
        self, disks: Sequence[DiskSize], configs: Sequence[tuple[str, bytes]]
    ) -> Sequence[IndexReuse]:
        """As the port says."""
        manifest = self._upload.previous.manifest
        sums = (
            {} if manifest is None else {entry.file_name: entry.csum for entry in manifest.entries}
        )
        await self._upload.begin_indexes(
            [
                PbsDisk(
                    device_id=disk.device_id,
                    size_bytes=disk.size_bytes,
                    base_csum=sums.get(disk_index_name(disk.device_id), b""),
                )
                for disk in disks
            ]
        )
        await self._upload.send_configs(configs)
        return tuple(
            IndexReuse(device_id=reuse.device_id, refusal=reuse.full_reason)
            for reuse in self._upload.reuse
        )

    async def begin(
        self, origins: Sequence[DiskOrigin], *, rate_limit_bytes_per_s: int
    ) -> DiskTransfer:
        """As the port says."""
        self._transfer = await self._upload.begin(
            origins, rate_limit_bytes_per_s=rate_limit_bytes_per_s
        )
        return self._transfer

    def failure(self) -> BackupError | None:
        """As the port says: the transfer speaks to the server, and has it first.

        The connection ends with a transfer that failed, so its end is no cause of that.
        """
        failure = None if self._transfer is None else self._transfer.failure()
        if failure is not None:
            return failure if isinstance(failure, PbsError) else None
        return self._upload.failure()

    async def finish(self) -> PbsFinished:
        """As the port says."""
        uploaded = await self._upload.finish()
        entries = uploaded.manifest.entries
        return PbsFinished(
            backup_id=content_id(uploaded.manifest),
            size_bytes=sum(entry.size_bytes for entry in entries),
            sent_bytes=uploaded.stats.sent_bytes,
            warnings=uploaded.warnings,
        )

    async def abort(self) -> None:
        """As the port says."""
        await self._upload.abort()
