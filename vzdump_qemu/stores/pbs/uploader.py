"""A whole backup of a VM to a server, from the first connection to ``finish``.

Owns the order of the protocol: everything that a server, a key or a certificate may refuse is
asked before a disk is opened, so before the guest is touched; the manifest goes last. Whether the
set of changes of a disk may be relied on is decided here too, and said aloud where it may not.
Source: PBS formats, sections 4, 8 and 9; failure modes, rows 71 to 76.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from vzdump_qemu.disk_ports import DiskOrigin
from vzdump_qemu.errors import InternalError, PbsError, PbsRefused, PbsUnreachable
from vzdump_qemu.formats.pbs import (
    BackupRef,
    BlobEncoder,
    CryptMode,
    FileKind,
    FixedGeometry,
    Manifest,
    ManifestEntry,
    Namespace,
    disk_index_name,
    encode_manifest,
    file_kind,
    sign_manifest,
    wrap_key,
)
from vzdump_qemu.formats.pbs.manifest import MANIFEST_BYTES_MAX
from vzdump_qemu.formats.pbs.names import MANIFEST_NAME, RSA_KEY_NAME
from vzdump_qemu.ports import Clock, DiskTransfer
from vzdump_qemu.stores.pbs.backup_session import BackupSession
from vzdump_qemu.stores.pbs.chunk_workers import ChunkEncoder, worker_count
from vzdump_qemu.stores.pbs.disk_upload import ChunkArrivals, DiskUpload, UploadStats
from vzdump_qemu.stores.pbs.endpoint import PbsEndpoint
from vzdump_qemu.stores.pbs.key_loading import BackupKey
from vzdump_qemu.stores.pbs.known_chunks import (
    KnownChunks,
    PreviousBackup,
    fetch_previous,
    fetch_previous_index,
    reuse_refusal,
)
from vzdump_qemu.stores.pbs.moving import (
    BeginMoving,
    Delivery,
    Moved,
    OpenReader,
    threaded_moving,
)
from vzdump_qemu.stores.pbs.restore import read_manifest

_SEED_BYTES: Final = 64
# Of a request that does not fit; with any other status it may have been carried out.
_CHECK_FAILED: Final = 400
_LOOK_COUNT: Final = 6
_LOOK_PAUSE_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PbsDisk:
    """A disk that is to be in a backup.

    Attributes:
        base_csum: index checksum of this disk in the backup at which the set of its changes
            begins; empty if there is no such set.
    """

    device_id: str
    size_bytes: int
    base_csum: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskReuse:
    """What the previous backup is good for.

    Attributes:
        is_incremental: what did not change is not read.
        full_reason: why everything is read; empty if it is not.
    """

    device_id: str
    is_incremental: bool
    full_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PbsUploaded:
    """A backup that the server has made final.

    Attributes:
        manifest: as it was sent; the sums of its entries are what the next incremental backup
            has to give as `PbsDisk.base_csum`.
        warnings: for the operator.
    """

    manifest: Manifest
    stats: UploadStats
    warnings: tuple[str, ...] = ()


class PbsUploader:
    """Begins backups on one server.

    Args:
        open_nbd: opens an origin with an NBD socket. It blocks, and raises DiskReadError.
        compress: whether to try.
        chance: returns that many bytes that nobody can foresee.
        thread_count: of threads that read, hash and compress.
        begin_moving: moves disks in another way than by threads; `open_nbd` is not used then.
    """

    def __init__(
        self,
        endpoint: PbsEndpoint,
        *,
        clock: Clock,
        open_nbd: OpenReader,
        compress: bool = True,
        chance: Callable[[int], bytes] = os.urandom,
        thread_count: int = 0,
        begin_moving: BeginMoving | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.clock = clock
        self.compress = compress
        self.chance = chance
        self.begin_moving = begin_moving or threaded_moving(
            open_nbd, thread_count=thread_count or worker_count()
        )

    async def open(
        self,
        backup: BackupRef,
        disks: Sequence[PbsDisk],
        *,
        configs: Sequence[tuple[str, bytes]],
        namespace: Namespace = Namespace(),  # noqa: B008 - a value that nobody can change
        key: BackupKey | None = None,
    ) -> PbsUpload:
        """Connect, look at the previous backup, begin every index and send the configurations.

        Args:
            configs: file name (``qemu-server.conf``) and content, in the order of the manifest.
        Raises:
            PbsRefused: in the server's words.
            PbsUnreachable: no connection, or it ended.
            PbsError: not the server that is trusted, or content that no backup can have.
        Cancelled: the server forgets the backup.
        """
        upload = await self.connect(backup, namespace=namespace, key=key)
        try:
            await upload.begin_indexes(disks)
            await upload.send_configs(configs)
        except BaseException:
            upload.cut()
            raise
        return upload

    async def connect(
        self,
        backup: BackupRef,
        *,
        namespace: Namespace = Namespace(),  # noqa: B008 - a value that nobody can change
        key: BackupKey | None = None,
    ) -> PbsUpload:
        """The first part of `open`: connect and look at the previous backup.

        Raises: as `open`.
        Cancelled: the server forgets the backup.
        """
        wrapped = _wrapped_key(key, self.chance, int(self.clock.wall_s()))
        session = await BackupSession.open(self.endpoint, namespace, backup)
        try:
            previous = await fetch_previous(session, backup.backup_group, key)
        except BaseException:
            session.abort()
            raise
        return PbsUpload(
            self,
            session,
            backup=backup,
            namespace=namespace,
            key=key,
            wrapped_key=wrapped,
            previous=previous,
        )


class PbsUpload:
    """One backup in the making; made by `PbsUploader`.

    Attributes:
        previous: the group's last backup, as far as it is of use.
    """

    def __init__(
        self,
        uploader: PbsUploader,
        session: BackupSession,
        *,
        backup: BackupRef,
        namespace: Namespace,
        key: BackupKey | None,
        wrapped_key: bytes,
        previous: PreviousBackup,
    ) -> None:
        self.previous = previous
        self._uploader = uploader
        self._session = session
        self._backup = backup
        self._namespace = namespace
        self._key = key
        self._wrapped_key = wrapped_key
        self._crypt_mode = CryptMode.NONE if key is None else key.mode
        self._data_key = None if key is None else key.data_key
        self._known = KnownChunks()
        self._disks: list[DiskUpload] = []
        self._device_ids: list[str] = []
        self._reuse: list[DiskReuse] = []
        self._entries: list[ManifestEntry] = []
        self._moved: Moved | None = None

    @property
    def reuse(self) -> Sequence[DiskReuse]:
        """For each disk, in order; known before any disk is opened."""
        return tuple(self._reuse)

    async def begin_indexes(self, disks: Sequence[PbsDisk]) -> None:
        """Begin the index of every disk, once. Raises as `PbsUploader.open`."""
        if len({disk.device_id for disk in disks}) != len(disks):
            raise PbsError("a disk is named twice")
        for disk in disks:
            self._disks.append(await self._begin_index(disk, self.previous))
            self._device_ids.append(disk.device_id)

    async def send_configs(self, configs: Sequence[tuple[str, bytes]]) -> None:
        """Send the configurations. Raises as `PbsUploader.open`."""
        for name, content in configs:
            await self._send_blob(f"{name}.blob", content)

    async def begin(
        self, origins: Sequence[DiskOrigin], *, rate_limit_bytes_per_s: int = 0
    ) -> DiskTransfer:
        """Open every disk, then begin to move them.

        Args:
            origins: the disks of `open` in the same order; the bitmap of one whose unchanged
                parts cannot be taken over is left aside, and all of it read.
            rate_limit_bytes_per_s: of reading, over all disks; 0 means unlimited.
        Raises:
            DiskReadError: a disk could not be opened; nothing was sent.
        Cancelled: nothing was sent; disks that are being opened are let go of once they are.
        """
        sizes = [(one.device_id, one.size_bytes) for one in origins]
        wanted = [
            (device_id, disk.geometry.size_bytes)
            for device_id, disk in zip(self._device_ids, self._disks, strict=True)
        ]
        if sizes != wanted:
            raise InternalError("the disks to be read are not those of the backup")
        trusted = [
            origin if reuse.is_incremental else replace(origin, bitmap_name="")
            for origin, reuse in zip(origins, self._reuse, strict=True)
        ]
        uploader = self._uploader
        moving = await uploader.begin_moving(
            Delivery(
                session=self._session,
                disks=self._disks,
                arrivals=ChunkArrivals(self._session, self._known),
                encoder=ChunkEncoder(
                    key=self._data_key, compress=uploader.compress, chance=uploader.chance
                ),
                data_key=self._data_key,
                clock=uploader.clock,
                rate_limit_bytes_per_s=rate_limit_bytes_per_s,
            ),
            trusted,
        )
        self._moved = moving.moved
        return moving.transfer

    def failure(self) -> PbsError | None:
        """Why the connection ended, if it did."""
        return self._session.failure()

    async def finish(self) -> PbsUploaded:
        """Send the manifest and make the backup final, once the transfer has finished.

        Where the answer to the last call is lost, the server is asked again what has become of
        the backup: only one that it has made final counts.

        Raises:
            PbsRefused, PbsUnreachable, PbsError: there is no backup.
        Cancelled: there may be a backup or not.
        """
        try:
            if self._disks:
                if self._moved is None or self._moved.entries is None:
                    raise InternalError("the disks have not been moved")
                self._entries += self._moved.entries
            if self._wrapped_key:
                await self._send_raw_blob(
                    RSA_KEY_NAME, self._wrapped_key, crypt_mode=CryptMode.ENCRYPT
                )
            manifest = Manifest(backup=self._backup, entries=tuple(self._entries))
            if self._key is not None:
                manifest = sign_manifest(manifest, self._key.key)
            text = encode_manifest(manifest)
            encoded = BlobEncoder().encode(text, content_bytes_max=MANIFEST_BYTES_MAX)
            await self._session.upload_blob(MANIFEST_NAME, encoded.to_bytes())
            warnings = await self._finish_session(manifest)
        finally:
            self._session.abort()
        stats = UploadStats() if self._moved is None else self._moved.stats()
        return PbsUploaded(manifest=manifest, stats=stats, warnings=warnings)

    def cut(self) -> None:
        """As `abort`, without a goodbye."""
        self._session.abort()

    async def abort(self) -> None:
        """End the connection: the server forgets the backup unless it is final. Idempotent."""
        await self._session.close()

    async def _begin_index(self, disk: PbsDisk, previous: PreviousBackup) -> DiskUpload:
        index_name = disk_index_name(disk.device_id)
        geometry = FixedGeometry(size_bytes=disk.size_bytes)
        found = await fetch_previous_index(
            *(self._session, previous, index_name, self._crypt_mode), size_bytes=disk.size_bytes
        )
        if found.index is not None:
            self._known.add_index(found.index)
        reason = "there is no set of changes"
        base = None
        if disk.base_csum:
            reason = reuse_refusal(found, size_bytes=disk.size_bytes, base_csum=disk.base_csum)
            base = None if reason else found.index
        writer_id = 0
        if base is not None:
            try:
                writer_id = await self._session.create_index(
                    FileKind.FIXED_INDEX,
                    index_name,
                    size_bytes=disk.size_bytes,
                    reuse_csum=disk.base_csum,
                )
            except PbsRefused as error:
                if error.status != _CHECK_FAILED:
                    raise
                # Refused before it was begun, so it may be begun in the other way.
                base, reason = None, f"the server refused to reuse the index: {error.message}"
        if base is None:
            writer_id = await self._session.create_index(
                FileKind.FIXED_INDEX, index_name, size_bytes=disk.size_bytes
            )
        self._reuse.append(
            DiskReuse(device_id=disk.device_id, is_incremental=base is not None, full_reason=reason)
        )
        return DiskUpload(
            self._session,
            index_name=index_name,
            geometry=geometry,
            writer_id=writer_id,
            crypt_mode=self._crypt_mode,
            base=base,
        )

    async def _send_blob(self, file_name: str, content: bytes) -> None:
        if file_kind(file_name) is not FileKind.DATA_BLOB:
            raise PbsError(f"not a file name of a backup: {file_name[:80]!a}")
        encoder = ChunkEncoder(
            key=self._data_key, compress=self._uploader.compress, chance=self._uploader.chance
        )
        encoded = encoder.encode(memoryview(content))
        await self._session.upload_blob(file_name, encoded.to_bytes())
        self._entries.append(
            ManifestEntry(
                file_name=file_name,
                size_bytes=encoded.encoded_bytes,
                csum=encoded.csum(),
                crypt_mode=self._crypt_mode,
            )
        )

    async def _send_raw_blob(
        self, file_name: str, content: bytes, *, crypt_mode: CryptMode
    ) -> None:
        encoded = BlobEncoder(compress=False).encode(content)
        await self._session.upload_blob(file_name, encoded.to_bytes())
        self._entries.append(
            ManifestEntry(
                file_name=file_name,
                size_bytes=encoded.encoded_bytes,
                csum=encoded.csum(),
                crypt_mode=crypt_mode,
            )
        )

    async def _finish_session(self, manifest: Manifest) -> tuple[str, ...]:
        try:
            await self._session.finish()
        except PbsUnreachable as error:
            # The lock of a backup in the making goes with its connection.
            self._session.abort()
            if not await self._is_final(manifest):
                raise
            return (f"the backup is final, but the server's answer was lost: {error.message}",)
        return ()

    async def _is_final(self, manifest: Manifest) -> bool:
        """Whether the server has made the backup final: then, only, it counted the chunks."""
        for attempt in range(_LOOK_COUNT):
            if attempt:
                await self._uploader.clock.sleep(_LOOK_PAUSE_S)
            try:
                found = await read_manifest(self._uploader.endpoint, self._namespace, self._backup)
            except PbsError:
                # Not there, still locked, or the server is not there: the last look decides.
                continue
            if found.unprotected.upload_stats is not None:
                return found.entries == manifest.entries
        return False


def _wrapped_key(key: BackupKey | None, chance: Callable[[int], bytes], now_s: int) -> bytes:
    """The backup's key under the master key; empty without one. Raises PbsKeyError."""
    if key is None or not key.master_pem:
        return b""
    return wrap_key(
        key.master_pem,
        key.key,
        created_s=key.created_s,
        modified_s=now_s,
        seed=chance(_SEED_BYTES),
    )
