"""Reading a backup from a server: files, whole disks, and the proof of every byte.

Owns the order of trust: manifest (signature, key), then an index against the manifest, then each
chunk against the index. Chunks are fetched side by side and proved in threads, one decoder each;
nothing that failed its proof is written. Source: PBS formats, section 5.
"""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from vzdump_qemu.errors import PbsCorrupt, PbsKeyError, TargetError
from vzdump_qemu.formats.pbs import (
    BackupRef,
    BlobDecoder,
    CryptMode,
    DataBlob,
    EncryptionKey,
    FileKind,
    FixedGeometry,
    FixedIndex,
    Manifest,
    ManifestEntry,
    Namespace,
    check_key,
    check_signature,
    decode_manifest,
    file_kind,
    layout,
    zero_chunk_digest,
)
from vzdump_qemu.formats.pbs.manifest import MANIFEST_BYTES_MAX
from vzdump_qemu.formats.pbs.names import MANIFEST_NAME
from vzdump_qemu.formats.vma import stored_blocks
from vzdump_qemu.formats.vma.layout import VMA_BLOCK_BYTES
from vzdump_qemu.stores.pbs.chunk_workers import DecodeWorkers, worker_count
from vzdump_qemu.stores.pbs.endpoint import PbsEndpoint
from vzdump_qemu.stores.pbs.reader_session import ReaderSession
from vzdump_qemu.stores.system import run_blocking
from vzdump_qemu.units import KIB

# As many as the reference library fetches; each takes a chunk twice in memory.
FETCH_COUNT: Final = 16
# What does not shrink is kept as it is; this is for one who keeps it nevertheless.
_ENCODED_SLACK_BYTES: Final = 64 * KIB

# Offset, content or None for zeroes, length.
_Write: TypeAlias = "Callable[[int, layout.Buffer | None, int], None]"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskProof:
    """What was shown of a disk: every chunk there, with the digest that the manifest stands for.

    Attributes:
        fetched_count: chunks that came over the line; the others are zeroes or were seen before.
    """

    size_bytes: int
    chunk_count: int
    fetched_count: int
    zero_count: int


class BackupReader:
    """A finished backup, open for reading.

    Every method raises PbsCorrupt for what is not as it should be, PbsKeyError where another key
    is needed, PbsRefused in the server's words, PbsUnreachable if the connection ended.
    """

    def __init__(
        self, session: ReaderSession, manifest: Manifest, *, key: EncryptionKey | None
    ) -> None:
        self._session = session
        self._key = key
        self.manifest = manifest

    @classmethod
    async def open(
        cls,
        endpoint: PbsEndpoint,
        namespace: Namespace,
        backup: BackupRef,
        *,
        key: EncryptionKey | None = None,
    ) -> BackupReader:
        """Open a backup and prove its manifest.

        Args:
            key: checks the signature, if there is one, and decrypts.
        """
        session = await ReaderSession.open(endpoint, namespace, backup)
        try:
            return cls(session, await _fetch_manifest(session, backup, key), key=key)
        except BaseException:
            await session.close()
            raise

    async def close(self) -> None:
        """End the connection. Idempotent."""
        await self._session.close()

    async def read_blob(self, file_name: str) -> bytes:
        """Content of a file that is no index."""
        entry = self._entry(file_name, FileKind.DATA_BLOB)
        # The length is proved with the sum; the bound is for one who sends without end.
        encoded = await self._session.download(
            file_name, bytes_max=min(entry.size_bytes + 1, layout.ENCODED_BYTES_MAX)
        )

        def decode() -> bytes:
            parsed = DataBlob.parse(encoded)
            entry.check(size_bytes=parsed.encoded_bytes, csum=parsed.csum())
            return bytes(BlobDecoder(key=self._key).decode(parsed))

        return await run_blocking(decode)

    async def read_index(self, file_name: str) -> FixedIndex:
        """The index of a disk, proved against the manifest."""
        entry = self._entry(file_name, FileKind.FIXED_INDEX)
        if not 1 <= entry.size_bytes <= layout.DISK_BYTES_MAX:
            raise PbsCorrupt(f"size of file '{file_name}' is out of range")
        largest = FixedGeometry(
            size_bytes=entry.size_bytes, chunk_bytes=layout.INDEX_CHUNK_BYTES_MIN
        )
        # The manifest of a server that lies may claim any size.
        bytes_max = min(largest.index_bytes, layout.INDEX_BYTES_MAX)
        raw = await self._session.download(file_name, bytes_max=bytes_max)
        index = FixedIndex.decode(raw)
        entry.check(size_bytes=index.geometry.size_bytes, csum=index.index_csum())
        return index

    async def restore_disk(
        self,
        file_name: str,
        target_fd: int,
        *,
        is_zeroed: bool,
        thread_count: int = 0,
        on_progress: Callable[[int], None] | None = None,
    ) -> DiskProof:
        """Write a disk to a file or block device, and prove every byte on the way.

        Args:
            target_fd: writable; borrowed. A file is given the disk's size by its owner.
            is_zeroed: the target reads as zero everywhere, so zeroes need not be written.
            on_progress: told of bytes dealt with, from the event loop.
        Raises:
            TargetError: the target cannot be written.
        """

        def write(offset_bytes: int, content: layout.Buffer | None, length_bytes: int) -> None:
            if not is_zeroed:
                _write(target_fd, offset_bytes, content or bytes(length_bytes))
            elif content is not None:
                _write_stored(target_fd, offset_bytes, memoryview(content))

        return await self._move(file_name, write, thread_count, on_progress)

    async def verify_disk(
        self,
        file_name: str,
        *,
        thread_count: int = 0,
        on_progress: Callable[[int], None] | None = None,
    ) -> DiskProof:
        """Prove every chunk of a disk and keep none; chunks that occur twice are fetched once."""
        return await self._move(file_name, None, thread_count, on_progress)

    async def _move(
        self,
        file_name: str,
        write: _Write | None,
        thread_count: int,
        on_progress: Callable[[int], None] | None,
    ) -> DiskProof:
        index = await self.read_index(file_name)
        entry = self.manifest.entry(file_name)
        if entry.crypt_mode.is_encrypted and self._key is None:
            raise PbsKeyError(f"missing key - file '{file_name}' is encrypted")
        workers = DecodeWorkers(key=self._key, count=thread_count or worker_count())
        mover = _Mover(
            self._session, index, workers=workers, crypt_mode=entry.crypt_mode, write=write
        )
        try:
            await mover.prepare(self._key if entry.crypt_mode.is_encrypted else None)
            return await mover.run(on_progress)
        finally:
            workers.close()
            # Whoever called may close the target now: its number may soon be another file's.
            await workers.wait_ended()

    def _entry(self, file_name: str, kind: FileKind) -> ManifestEntry:
        if file_kind(file_name) is not kind:
            raise PbsCorrupt(f"file '{file_name}' is of another kind")
        return self.manifest.entry(file_name)


async def read_manifest(
    endpoint: PbsEndpoint,
    namespace: Namespace,
    backup: BackupRef,
    *,
    key: EncryptionKey | None = None,
) -> Manifest:
    """The manifest of a finished backup, as `BackupReader.open` proves it."""
    session = await ReaderSession.open(endpoint, namespace, backup)
    try:
        return await _fetch_manifest(session, backup, key)
    finally:
        await session.close()


class _Mover:
    """Fetches, proves and writes the chunks of one index, several at a time."""

    def __init__(
        self,
        session: ReaderSession,
        index: FixedIndex,
        *,
        workers: DecodeWorkers,
        crypt_mode: CryptMode,
        write: _Write | None,
    ) -> None:
        self._session = session
        self._index = index
        self._workers = workers
        self._crypt_mode = crypt_mode
        self._write = write
        self._zero_digest = b""
        self._seen: set[bytes] = set()
        self._fetched_count = self._zero_count = 0

    async def prepare(self, key: EncryptionKey | None) -> None:
        """Compute the digest of a chunk of zeroes."""
        chunk_bytes = self._index.geometry.chunk_bytes
        self._zero_digest = await run_blocking(
            lambda: zero_chunk_digest(key, chunk_bytes=chunk_bytes)
        )

    async def run(self, on_progress: Callable[[int], None] | None) -> DiskProof:
        """Move everything. The first failure ends it; nothing is left running."""
        chunks = enumerate(self._index)
        buffer_bytes = self._index.geometry.chunk_bytes + _ENCODED_SLACK_BYTES

        async def move_some() -> None:
            # Used again and again: fresh memory costs as much as proving what is put there. Pages
            # that nothing reaches are never taken.
            buffer = memoryview(mmap.mmap(-1, buffer_bytes))
            for chunk_index, digest in chunks:
                await self._move_one(chunk_index, digest, buffer)
                if on_progress is not None:
                    on_progress(self._index.geometry.chunk_length_bytes(chunk_index))

        tasks = [asyncio.create_task(move_some()) for _ in range(FETCH_COUNT)]
        try:
            await _first_failure(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        geometry = self._index.geometry
        return DiskProof(
            size_bytes=geometry.size_bytes,
            chunk_count=geometry.chunk_count,
            fetched_count=self._fetched_count,
            zero_count=self._zero_count,
        )

    async def _move_one(self, chunk_index: int, digest: bytes, buffer: memoryview) -> None:
        geometry = self._index.geometry
        length_bytes = geometry.chunk_length_bytes(chunk_index)
        offset_bytes = geometry.chunk_offset_bytes(chunk_index)
        write = self._write
        # A short chunk of zeroes has a digest of its own.
        if digest == self._zero_digest and length_bytes == geometry.chunk_bytes:
            self._zero_count += 1
            if write is not None:
                await self._workers.run(lambda _: write(offset_bytes, None, length_bytes))
            return
        if write is None:
            if digest in self._seen:
                return
            self._seen.add(digest)
        encoded = await self._session.chunk(digest, buffer)
        self._fetched_count += 1

        def prove(decoder: BlobDecoder) -> None:
            content = decoder.decode_chunk(
                encoded,
                digest=digest,
                content_bytes=length_bytes,
                crypt_mode=self._crypt_mode,
            )
            if write is not None:
                write(offset_bytes, content, length_bytes)

        try:
            await self._workers.run(prove)
        except PbsCorrupt as error:
            raise PbsCorrupt(
                f"chunk {digest.hex()} at byte {offset_bytes}: {error.message}", hint=error.hint
            ) from error


async def _first_failure(tasks: list[asyncio.Task[None]]) -> None:
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()


async def _fetch_manifest(
    session: ReaderSession, backup: BackupRef, key: EncryptionKey | None
) -> Manifest:
    encoded = await session.download(
        MANIFEST_NAME, bytes_max=layout.PLAIN_STRUCT.size + MANIFEST_BYTES_MAX
    )
    manifest = decode_manifest(BlobDecoder().decode(encoded, content_bytes_max=MANIFEST_BYTES_MAX))
    if manifest.backup != backup:
        raise PbsCorrupt("manifest is one of another backup")
    if key is not None:
        check_key(manifest, key)
        check_signature(manifest, key)
    return manifest


def _write_stored(fd: int, offset_bytes: int, content: memoryview) -> None:
    """Write what is not zero, so that the rest takes no room in the target either."""
    stored = stored_blocks(content)
    if stored.all():
        _write(fd, offset_bytes, content)
        return
    changes = np.flatnonzero(np.diff(stored, prepend=False, append=False)) * VMA_BLOCK_BYTES
    for begin, end in changes.reshape(-1, 2).tolist():
        _write(fd, offset_bytes + begin, content[begin:end])


def _write(fd: int, offset_bytes: int, content: layout.Buffer) -> None:
    view = memoryview(content)
    while len(view):
        try:
            count = os.pwrite(fd, view, offset_bytes)
        except OSError as error:
            raise TargetError(
                f"unable to write at byte {offset_bytes} - {error.strerror}"
            ) from error
        view = view[count:]
        offset_bytes += count
