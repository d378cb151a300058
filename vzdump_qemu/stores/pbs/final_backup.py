"""A backup that its server has made final: what names its content, and that nothing is missing.

Owns the look at a backup that somebody else sent (QEMU, the platform's client program); what our
own client sends it knows by itself. Source: PBS formats, section 8; failure modes, row 74.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from vzdump_qemu.errors import PbsCorrupt, PbsError, PbsKeyError
from vzdump_qemu.formats.pbs import (
    BackupRef,
    EncryptionKey,
    FileKind,
    Manifest,
    Namespace,
    disk_index_name,
    file_kind,
)
from vzdump_qemu.pbs_ports import DiskSize, PbsFinished
from vzdump_qemu.ports import Clock
from vzdump_qemu.stores.pbs.endpoint import PbsEndpoint
from vzdump_qemu.stores.pbs.restore import read_manifest

# A server that was started anew in this very moment is there again after that.
_LOOK_COUNT: Final = 4
_LOOK_PAUSE_S: Final = 5.0


class FinalBackups:
    """Backups of one namespace, looked at once they should be final.

    Args:
        key: that the backups are to be signed with; None for plain ones.
    """

    def __init__(
        self,
        endpoint: PbsEndpoint,
        namespace: Namespace,
        *,
        key: EncryptionKey | None,
        clock: Clock,
    ) -> None:
        self._endpoint = endpoint
        self._namespace = namespace
        self._key = key
        self._clock = clock

    async def prove(
        self, backup: BackupRef, disks: Sequence[DiskSize], config_names: Sequence[str]
    ) -> PbsFinished:
        """See `PbsUploads.prove`."""
        manifest = await self._read(backup)
        stats = manifest.unprotected.upload_stats
        if stats is None:
            # The server counts the chunks when it makes a backup final, and only then.
            raise PbsCorrupt(f"backup '{backup.path}' is not finished")
        self._check(manifest, disks, config_names)
        return PbsFinished(
            backup_id=content_id(manifest),
            size_bytes=sum(entry.size_bytes for entry in manifest.entries),
            sent_bytes=stats.compressed_bytes,
        )

    async def _read(self, backup: BackupRef) -> Manifest:
        for attempt in range(1, _LOOK_COUNT + 1):
            try:
                return await read_manifest(self._endpoint, self._namespace, backup, key=self._key)
            except (PbsCorrupt, PbsKeyError):
                raise
            except PbsError:
                if attempt == _LOOK_COUNT:
                    raise
                await self._clock.sleep(_LOOK_PAUSE_S)
        raise AssertionError("the last attempt returns or raises")

    def _check(
        self, manifest: Manifest, disks: Sequence[DiskSize], config_names: Sequence[str]
    ) -> None:
        found = {entry.file_name: entry for entry in manifest.entries}
        sizes = {disk_index_name(disk.device_id): disk.size_bytes for disk in disks}
        for name in (*sizes, *(f"{name}{FileKind.DATA_BLOB.value}" for name in config_names)):
            entry = found.get(name)
            if entry is None:
                raise PbsCorrupt(f"backup '{manifest.backup.path}' lacks file '{name}'")
            size_bytes = sizes.get(name, entry.size_bytes)
            if entry.size_bytes != size_bytes:
                raise PbsCorrupt(
                    f"file '{name}' of backup '{manifest.backup.path}' has "
                    f"{entry.size_bytes} bytes instead of {size_bytes}"
                )
            if self._key is not None and not entry.crypt_mode.is_encrypted:
                raise PbsCorrupt(f"file '{name}' of backup '{manifest.backup.path}' is in plain")


def content_id(manifest: Manifest) -> str:
    """Names what a backup holds: its path, and size and sum of every disk.

    A backup of that name with other content, on a server that was set back, has another one.
    """
    state = hashlib.sha256(manifest.backup.path.encode())
    for entry in sorted(manifest.entries, key=lambda entry: entry.file_name):
        if file_kind(entry.file_name) is FileKind.FIXED_INDEX:
            state.update(f"\n{entry.file_name} {entry.size_bytes} {entry.csum.hex()}".encode())
    return state.hexdigest()
