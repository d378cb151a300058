"""A backup on a backup server as a `StoredBackup`.

Owns which backup is meant, what the verbs show of it, and the order in which it is read whole;
reading is `restore`'s. Each question runs an event loop of its own: verbs have none.
Source: PBS formats, sections 5 and 8.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from vzdump_qemu.errors import ConfigError, PbsCorrupt, PbsError, PbsKeyError, PbsRefused
from vzdump_qemu.formats.pbs import (
    BackupGroup,
    BackupRef,
    BackupType,
    CryptMode,
    EncryptionKey,
    FileKind,
    Manifest,
    check_key,
    disk_of_index,
    file_kind,
)
from vzdump_qemu.formats.pbs.names import FIREWALL_NAME, RSA_KEY_NAME
from vzdump_qemu.formats.pbs.times import render_utc
from vzdump_qemu.formats.vma import ConfigBlob
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.ports import Clock
from vzdump_qemu.stores.pbs.management import DatastoreCalls, ListedBackup
from vzdump_qemu.stores.pbs.restore import BackupReader, DiskProof
from vzdump_qemu.stores.pbs.uploads import load_key, make_endpoint
from vzdump_qemu.stores.stored_backup import (
    BackupContents,
    BackupProof,
    BackupSummary,
    OpenTarget,
    ProvedDisk,
    StoredConfig,
    StoredDisk,
    no_such_config,
)

_SUFFIX: Final = FileKind.DATA_BLOB.value
# What the server says of a chunk or file that it has lost.
_BAD_REQUEST: Final = 400
_Result = TypeVar("_Result")


class ServerBackup:
    """`StoredBackup` on a server.

    Args:
        name: as the operator named it.
        backup_time_s: None for the newest finished backup of the group.
    """

    def __init__(
        self,
        target: PbsTarget,
        group: BackupGroup,
        backup_time_s: int | None,
        *,
        name: str,
        clock: Clock,
    ) -> None:
        self._target = target
        self._group = group
        self._backup_time_s = backup_time_s
        self._name = name
        self._clock = clock

    @property
    def name(self) -> str:
        """As the operator named it."""
        return self._name

    def summarize(self) -> BackupSummary:
        """As the interface says, by the manifest alone; only a key that is needed is loaded."""
        return asyncio.run(self._summarize())

    def read_config(self, name: str) -> bytes:
        """As the interface says."""
        return asyncio.run(self._read_config(name))

    def verify(self) -> BackupProof:
        """As the interface says: every chunk and every other file is there and right.

        Raises:
            PbsKeyError: the key is missing or another one; nothing can be said.
        """
        return asyncio.run(self._verify())

    def restore(
        self, open_target: OpenTarget, *, on_contents: Callable[[BackupContents], None]
    ) -> BackupProof:
        """As the interface says."""
        return asyncio.run(self._restore(open_target, on_contents))

    async def _summarize(self) -> BackupSummary:
        async with self._open() as opened:
            return opened.summary()

    async def _read_config(self, name: str) -> bytes:
        async with self._open() as opened:
            names = opened.config_names()
            if name not in names:
                raise no_such_config(name, names)
            opened.require_key()
            return await opened.reader.read_blob(f"{name}{_SUFFIX}")

    async def _verify(self) -> BackupProof:
        async with self._open() as opened:
            opened.require_key()
            for entry in opened.manifest.entries:
                if file_kind(entry.file_name) is FileKind.DATA_BLOB:
                    await _sure(entry.file_name, opened.reader.read_blob(entry.file_name))
            disks = [
                _proved(disk, await _sure(disk.name, opened.reader.verify_disk(index_name)))
                for index_name, disk in opened.disks().items()
            ]
            return BackupProof(summary=opened.summary(), disks=disks)

    async def _restore(
        self, open_target: OpenTarget, on_contents: Callable[[BackupContents], None]
    ) -> BackupProof:
        async with self._open() as opened:
            opened.require_key()
            disks = opened.disks()
            configs = [
                ConfigBlob(
                    name=name,
                    data=await _sure(name, opened.reader.read_blob(f"{name}{_SUFFIX}")),
                )
                for name in opened.config_names()
            ]
            on_contents(
                BackupContents(
                    configs=configs,
                    disks=tuple(disks.values()),
                    firewall_name=FIREWALL_NAME.removesuffix(_SUFFIX),
                )
            )
            targets = {name: open_target(disk) for name, disk in disks.items()}
            proved = [
                _proved(
                    disks[name],
                    await _sure(
                        disks[name].name, opened.reader.restore_disk(name, fd, is_zeroed=True)
                    ),
                )
                for name, fd in targets.items()
                if fd is not None
            ]
            return BackupProof(summary=opened.summary(), disks=proved)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[_Opened]:
        target = self._target
        loaded = await load_key(target)
        key = None if loaded is None else loaded.key
        endpoint = make_endpoint(target, clock=self._clock)
        backup_time_s = self._backup_time_s
        if backup_time_s is None:
            backup_time_s = await self._newest(DatastoreCalls(endpoint, target.namespace))
        backup = BackupRef(backup_group=self._group, backup_time_s=backup_time_s)
        reader = await BackupReader.open(endpoint, target.namespace, backup, key=key)
        try:
            yield _Opened(reader=reader, key=key)
        finally:
            await reader.close()

    async def _newest(self, calls: DatastoreCalls) -> int:
        listed = await calls.list_backups(self._group)
        times_s = [one.backup.backup_time_s for one in listed if one.size_bytes is not None]
        if not times_s:
            raise PbsError(f"there is no finished backup of '{self._group.path}'")
        return max(times_s)


def list_server_backups(target: PbsTarget, *, clock: Clock) -> Sequence[ListedBackup]:
    """All backups of VMs in the target's namespace, unfinished ones too. Raises PbsError."""

    async def ask() -> Sequence[ListedBackup]:
        endpoint = make_endpoint(target, clock=clock)
        return await DatastoreCalls(endpoint, target.namespace).list_backups()

    listed = asyncio.run(ask())
    return [one for one in listed if one.backup.backup_group.backup_type is BackupType.VM]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """A backup whose manifest is proved."""

    reader: BackupReader
    key: EncryptionKey | None

    @property
    def manifest(self) -> Manifest:
        return self.reader.manifest

    def require_key(self) -> None:
        """Raise PbsKeyError if content is encrypted and there is no key."""
        if not any(entry.crypt_mode.is_encrypted for entry in self.manifest.entries):
            return
        try:
            check_key(self.manifest, self.key)
        except PbsKeyError as error:
            raise PbsKeyError(error.message, hint="name its file with --keyfile") from error

    def disks(self) -> Mapping[str, StoredDisk]:
        """By name of the index, in the order of names. Raises ConfigError: no VM's backup."""
        found = {}
        # The manifest's own order is that in which the disks happened to be done.
        for entry in sorted(self.manifest.entries, key=lambda entry: entry.file_name):
            if file_kind(entry.file_name) is FileKind.DATA_BLOB:
                continue
            name = disk_of_index(entry.file_name)
            if name is None:
                raise ConfigError(f"file '{entry.file_name}' belongs to no VM")
            found[entry.file_name] = StoredDisk(
                name=name, size_bytes=entry.size_bytes, file_name=f"disk-{name}.raw"
            )
        return found

    def config_names(self) -> list[str]:
        return [
            entry.file_name.removesuffix(_SUFFIX)
            for entry in self.manifest.entries
            if file_kind(entry.file_name) is FileKind.DATA_BLOB and entry.file_name != RSA_KEY_NAME
        ]

    def summary(self) -> BackupSummary:
        """What the manifest says; the firewall and the like with the size they are stored in."""
        names = self.config_names()
        return BackupSummary(
            facts=self._facts(),
            configs=tuple(
                StoredConfig(
                    name=name, size_bytes=self.manifest.entry(f"{name}{_SUFFIX}").size_bytes
                )
                for name in names
            ),
            disks=tuple(self.disks().values()),
        )

    def _facts(self) -> dict[str, str]:
        manifest = self.manifest
        unprotected = manifest.unprotected
        modes = {entry.crypt_mode for entry in manifest.entries}
        if CryptMode.ENCRYPT in modes:
            mode = CryptMode.ENCRYPT
        else:
            mode = CryptMode.SIGN_ONLY if CryptMode.SIGN_ONLY in modes else CryptMode.NONE
        facts = {
            "backup": manifest.backup.path,
            "created": render_utc(manifest.backup.backup_time_s),
            "encryption": mode.value,
            "signature": self._signature(),
        }
        if unprotected.key_fingerprint is not None:
            facts["key"] = str(unprotected.key_fingerprint)
        if unprotected.verification is not None:
            facts["verified"] = unprotected.verification.state.value
        if unprotected.notes:
            facts["notes"] = unprotected.notes
        return facts

    def _signature(self) -> str:
        if self.manifest.signature is None:
            return "none"
        # A wrong one has ended the opening.
        return "not checked" if self.key is None else "right"


def _proved(disk: StoredDisk, proof: DiskProof) -> ProvedDisk:
    return ProvedDisk(
        disk=disk,
        figures={
            "chunk_count": proof.chunk_count,
            "zero_chunk_count": proof.zero_count,
            "fetched_chunk_count": proof.fetched_count,
        },
    )


async def _sure(name: str, reading: Awaitable[_Result]) -> _Result:
    """What was read; an error says of what, and a file that the server lost is no whole backup."""
    try:
        return await reading
    except PbsCorrupt as error:
        if name in error.message:
            raise
        raise PbsCorrupt(f"{name}: {error.message}", hint=error.hint) from error
    except PbsRefused as error:
        if error.status != _BAD_REQUEST:
            raise
        raise PbsCorrupt(f"{name}: the server has lost a part - {error.message}") from error
