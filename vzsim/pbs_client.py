"""The client library of a simulated QEMU: our own client of backup servers.

The one place where the simulator uses a part of the tool: a backup with ``format=pbs`` moves real
bytes, and a second client would prove nothing about servers. Owns the order in which the library
of the real QEMU does things; checks, jobs and points in time are `fakeqmp`'s. Everything happens on
the running event loop, so in virtual time as well. Source: PVE interface, section 9; PBS formats,
section 4.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import cache
from typing import Any

from vzdump_qemu.errors import BackupError, PbsError
from vzdump_qemu.formats.pbs import (
    BackupGroup,
    BackupRef,
    BackupType,
    BlobEncoder,
    CryptMode,
    DataBlob,
    FileKind,
    Fingerprint,
    FixedGeometry,
    Manifest,
    ManifestEntry,
    Namespace,
    Repository,
    decode_key_file,
    disk_index_name,
    encode_manifest,
    layout,
    sign_manifest,
    unlock_key_file,
    wrap_key,
    zero_chunk_digest,
)
from vzdump_qemu.formats.pbs.manifest import MANIFEST_BYTES_MAX
from vzdump_qemu.formats.pbs.names import MANIFEST_NAME, RSA_KEY_NAME
from vzdump_qemu.ports import Clock
from vzdump_qemu.secret import Secret
from vzdump_qemu.stores.pbs.backup_session import BackupSession
from vzdump_qemu.stores.pbs.chunk_workers import ChunkEncoder
from vzdump_qemu.stores.pbs.disk_upload import DiskUpload
from vzdump_qemu.stores.pbs.endpoint import PbsEndpoint
from vzdump_qemu.stores.pbs.key_loading import BackupKey
from vzdump_qemu.stores.pbs.known_chunks import (
    KnownChunks,
    PreviousBackup,
    fetch_previous,
    fetch_previous_index,
    reuse_refusal,
)
from vzdump_qemu.stores.pbs.login import make_login
from vzdump_qemu.stores.pbs.tls import Stream, TlsTrust
from vzdump_qemu.stores.system import SystemClock
from vzsim.fakepbs.server import FakePbs
from vzsim.fakepbs.uploads import Offload, in_place
from vzsim.fakeqmp.pbs_port import PbsFailed, PbsRequest

_SEED_BYTES = 64

OpenStream = Callable[[Repository], Awaitable[Stream]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Where the library takes time, chance, connections and computing from.

    Attributes:
        open_stream: makes connections in another way than by TLS over TCP, for simulations.
        offload: where chunks are hashed and compressed.
    """

    clock: Clock
    chance: Callable[[int], bytes]
    open_stream: OpenStream | None = None
    offload: Offload = in_place


class ClientLibrary:
    """`PbsLibrary` by our client."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, request: PbsRequest) -> ClientWriter:
        """As the port says."""
        try:
            return ClientWriter(request, self._surroundings)
        except BackupError as error:
            raise PbsFailed(error.message) from error

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """As the port says, on the running loop."""
        task = asyncio.get_running_loop().create_task(work)
        # A loop holds tasks only weakly.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def system_library() -> ClientLibrary:
    """The library of a process: TLS over TCP, and threads for the chunks."""
    return ClientLibrary(
        Surroundings(clock=SystemClock(), chance=os.urandom, offload=asyncio.to_thread)
    )


def memory_library(pbs: FakePbs, *, clock: Clock, chance: Callable[[int], bytes]) -> ClientLibrary:
    """The library of a simulated process; every repository is on that server, in memory."""
    serving: set[asyncio.Task[None]] = set()

    async def connect(_repository: Repository) -> Stream:
        stream, task = pbs.connect()
        serving.add(task)
        task.add_done_callback(serving.discard)
        return stream

    return ClientLibrary(Surroundings(clock=clock, chance=chance, open_stream=connect))


class ClientWriter:
    """`PbsWriter` by our client. Raises: BackupError for what cannot be."""

    def __init__(self, request: PbsRequest, surroundings: Surroundings) -> None:
        self._key = _load_key(request)
        self._endpoint = _endpoint(request, surroundings)
        self._namespace = Namespace.parse(request.namespace)
        group = BackupGroup(backup_type=BackupType.VM, backup_id=request.backup_id)
        self._backup = BackupRef(backup_group=group, backup_time_s=request.backup_time_s)
        self._surroundings = surroundings
        self._crypt_mode = CryptMode.NONE if self._key is None else self._key.mode
        self._encoder = ChunkEncoder(
            key=None if self._key is None else self._key.data_key,
            compress=request.compress,
            chance=surroundings.chance,
        )
        self._compresses = request.compress
        self._wrapped_key = self._wrap_key()
        self._session: BackupSession | None = None
        self._previous = PreviousBackup(manifest=None)
        self._known = KnownChunks()
        self._disks: dict[str, DiskUpload] = {}
        # Chunks that are new in this backup, from when they are first met.
        self._uploads: dict[bytes, asyncio.Task[None]] = {}
        self._zero_digest = b""
        self._zero_chunk: DataBlob | None = None
        self._entries: list[ManifestEntry] = []
        self._is_aborted = False

    async def connect(self) -> None:
        """As the port says."""
        try:
            session = await BackupSession.open(self._endpoint, self._namespace, self._backup)
            self._session = session
            if self._is_aborted:
                session.abort()
            group = self._backup.backup_group
            self._previous = await fetch_previous(session, group, self._key)
        except BackupError as error:
            raise _failed(error) from error

    async def register(self, device_id: str, size_bytes: int, *, base_csum: bytes) -> bool:
        """As the port says; a chunk of zeroes is sent for each disk, as the real library does."""
        try:
            session = self._connected()
            index_name = disk_index_name(device_id)
            geometry = FixedGeometry(size_bytes=size_bytes)
            found = await fetch_previous_index(
                *(session, self._previous, index_name, self._crypt_mode), size_bytes=size_bytes
            )
            if found.index is not None:
                self._known.add_index(found.index)
            base = None
            if base_csum and not reuse_refusal(found, size_bytes=size_bytes, base_csum=base_csum):
                base = found.index
            writer_id = await session.create_index(
                FileKind.FIXED_INDEX,
                index_name,
                size_bytes=size_bytes,
                reuse_csum=b"" if base is None else base_csum,
            )
            await self._send_zero_chunk(session, writer_id)
        except BackupError as error:
            raise _failed(error) from error
        self._disks[device_id] = DiskUpload(
            session,
            index_name=index_name,
            geometry=geometry,
            writer_id=writer_id,
            crypt_mode=self._crypt_mode,
            base=base,
        )
        return base is not None

    async def add_config(self, file_name: str, content: bytes) -> None:
        """As the port says."""
        try:
            encoded = self._encoder.encode(memoryview(content))
            await self._send_blob(f"{file_name}.blob", encoded, self._crypt_mode)
        except BackupError as error:
            raise _failed(error) from error

    async def write(self, device_id: str, chunk_index: int, data: bytes | None) -> bool:
        """As the port says."""
        disk = self._disks[device_id]
        try:
            digest, is_reused = self._zero_digest, True
            if data is not None:
                content = memoryview(data)
                digest = await self._surroundings.offload(lambda: self._encoder.digest(content))
                is_reused = digest in self._known or digest in self._uploads
                await self._have_uploaded(disk.writer_id, digest, content)
            await disk.name([(chunk_index, digest)])
        except BackupError as error:
            raise _failed(error) from error
        return is_reused

    async def close_image(self, device_id: str) -> bytes:
        """As the port says."""
        try:
            entry = await self._disks[device_id].close()
        except BackupError as error:
            raise _failed(error) from error
        self._entries.append(entry)
        return entry.csum

    async def finish(self) -> None:
        """As the port says."""
        try:
            session = self._connected()
            if self._wrapped_key:
                encoded = BlobEncoder(compress=False).encode(self._wrapped_key)
                await self._send_blob(RSA_KEY_NAME, encoded, CryptMode.ENCRYPT)
            manifest = Manifest(backup=self._backup, entries=tuple(self._entries))
            if self._key is not None:
                manifest = sign_manifest(manifest, self._key.key)
            text = encode_manifest(manifest)
            encoded = BlobEncoder().encode(text, content_bytes_max=MANIFEST_BYTES_MAX)
            await session.upload_blob(MANIFEST_NAME, encoded.to_bytes())
            await session.finish()
        except BackupError as error:
            raise _failed(error) from error
        finally:
            self.abort()

    def abort(self) -> None:
        """As the port says."""
        self._is_aborted = True
        if self._session is not None:
            self._session.abort()

    def _connected(self) -> BackupSession:
        if self._session is None:
            raise PbsError("not connected")
        return self._session

    async def _have_uploaded(self, writer_id: int, digest: bytes, content: memoryview) -> None:
        """Return once the server has the chunk; whoever met it first sends it."""
        if digest in self._known:
            return
        upload = self._uploads.get(digest)
        if upload is None:
            upload = asyncio.create_task(self._upload(writer_id, digest, content))
            # Those who wait are told; there may be none any more.
            upload.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._uploads[digest] = upload
        await asyncio.shield(upload)

    async def _upload(self, writer_id: int, digest: bytes, content: memoryview) -> None:
        chunk = await self._surroundings.offload(lambda: self._encoder.encode(content))
        await self._connected().upload_chunk(
            FileKind.FIXED_INDEX, writer_id, digest=digest, size_bytes=len(content), chunk=chunk
        )

    async def _send_zero_chunk(self, session: BackupSession, writer_id: int) -> None:
        if self._zero_chunk is None:
            key = self._key.data_key if self._key is not None else None
            self._zero_digest = zero_chunk_digest(key)
            self._zero_chunk = (
                _plain_zero_chunk(compress=self._compresses)
                if key is None
                else self._encoder.encode(memoryview(bytes(layout.CHUNK_BYTES)))
            )
        await session.upload_chunk(
            FileKind.FIXED_INDEX,
            writer_id,
            digest=self._zero_digest,
            size_bytes=layout.CHUNK_BYTES,
            chunk=self._zero_chunk,
        )

    async def _send_blob(self, file_name: str, encoded: DataBlob, crypt_mode: CryptMode) -> None:
        await self._connected().upload_blob(file_name, encoded.to_bytes())
        self._entries.append(
            ManifestEntry(
                file_name=file_name,
                size_bytes=encoded.encoded_bytes,
                csum=encoded.csum(),
                crypt_mode=crypt_mode,
            )
        )

    def _wrap_key(self) -> bytes:
        key = self._key
        if key is None or not key.master_pem:
            return b""
        return wrap_key(
            key.master_pem,
            key.key,
            created_s=key.created_s,
            modified_s=int(self._surroundings.clock.wall_s()),
            seed=self._surroundings.chance(_SEED_BYTES),
        )


def _load_key(request: PbsRequest) -> BackupKey | None:
    if request.key_file is None:
        if request.master_pem is not None:
            raise PbsError("can't use master keyfile without keyfile")
        return None
    password = None if request.key_password is None else request.key_password.encode()
    key_file = decode_key_file(request.key_file)
    return BackupKey(
        key=unlock_key_file(key_file, password),
        mode=CryptMode.ENCRYPT if request.encrypt else CryptMode.SIGN_ONLY,
        created_s=key_file.created_s,
        master_pem=request.master_pem or b"",
    )


def _endpoint(request: PbsRequest, surroundings: Surroundings) -> PbsEndpoint:
    repository = Repository.parse(request.repository)
    pin = Fingerprint.parse(request.fingerprint) if request.fingerprint else None
    clock, open_stream = surroundings.clock, surroundings.open_stream
    return PbsEndpoint(
        repository,
        trust=TlsTrust(fingerprint=pin),
        login=make_login(repository.auth_id, Secret(request.password), clock),
        clock=clock,
        connect_count_max=1,
        open_stream=None if open_stream is None else lambda: open_stream(repository),
    )


def _failed(error: BackupError) -> PbsFailed:
    return PbsFailed(f"command error: {error.message}")


@cache
def _plain_zero_chunk(*, compress: bool) -> DataBlob:
    """The same for everybody, and as much work as any."""
    encoder = ChunkEncoder(key=None, compress=compress)
    return encoder.encode(memoryview(bytes(layout.CHUNK_BYTES)))
