"""One backup: what happens on a connection behind the upgrade to the backup protocol.

Owns the endpoints, which chunks the connection knows, the files of the new backup and its end: it
is removed unless it was finished. What must hold before the upgrade is in `admission`.
Source: PBS formats, section 4.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from vzdump_qemu.errors import PbsError
from vzdump_qemu.formats.pbs import layout
from vzdump_qemu.formats.pbs.dynamic_index import DynamicIndex
from vzdump_qemu.formats.pbs.fixed_index import FixedIndex
from vzdump_qemu.formats.pbs.index_header import IndexStamp
from vzdump_qemu.formats.pbs.manifest import ChunkUploadStats
from vzdump_qemu.formats.pbs.names import BackupRef
from vzsim.fakepbs.counters import Counters
from vzsim.fakepbs.datastore import Datastore, Place
from vzsim.fakepbs.faults import FaultKind, Faults
from vzsim.fakepbs.files import render_os_error
from vzsim.fakepbs.index_writers import Closing, DynamicWriter, FixedWriter
from vzsim.fakepbs.locks import Lock
from vzsim.fakepbs.parameters import (
    DIGEST,
    FILE_NAME,
    Integer,
    ListOf,
    Parameter,
    check_parameters,
)
from vzsim.fakepbs.requests import ApiError, Reply, Request, data_reply, file_reply
from vzsim.fakepbs.uploads import Offload, UploadedChunk, check_data_blob

_WRITER_COUNT_MAX: Final = 256
_SIZE_MAX: Final = (1 << 63) - 1
_WID: Final = Parameter("wid", Integer(1, _WRITER_COUNT_MAX))
_FILE: Final = Parameter("archive-name", FILE_NAME)
_UPLOAD_BLOB: Final = (
    Parameter("file-name", FILE_NAME),
    Parameter("encoded-size", Integer(12, layout.UPLOAD_BYTES_MAX)),
)
_UPLOAD_CHUNK: Final = (
    _WID,
    Parameter("digest", DIGEST),
    Parameter("size", Integer(1, layout.CHUNK_BYTES_MAX)),
    Parameter("encoded-size", Integer(13, layout.UPLOAD_BYTES_MAX)),
)
_OPEN_FIXED: Final = (
    _FILE,
    Parameter("size", Integer(1, _SIZE_MAX), is_optional=True),
    Parameter("reuse-csum", DIGEST, is_optional=True),
)
_OPEN_FIXED_OLD: Final = tuple(
    replace(each, is_optional=each.name == "reuse-csum") for each in _OPEN_FIXED
)
# From this version on an index may be opened without a size.
_GROWING_SINCE: Final = (4, 1, 5)
_APPEND: Final = (
    _WID,
    Parameter("digest-list", ListOf(DIGEST)),
    Parameter("offset-list", ListOf(Integer(0, _SIZE_MAX))),
)
_CLOSE_DYNAMIC: Final = (
    _WID,
    Parameter("chunk-count", Integer(1, _SIZE_MAX)),
    Parameter("size", Integer(1, _SIZE_MAX)),
    Parameter("csum", DIGEST),
)
# An incremental index of a disk that did not change names no chunk.
_CLOSE_FIXED: Final = (
    _WID,
    Parameter("chunk-count", Integer(0, _SIZE_MAX)),
    Parameter("size", Integer(0, _SIZE_MAX)),
    Parameter("csum", DIGEST),
)

_Endpoint = Callable[[Request], Awaitable[Reply]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTools:
    """What every session of a server shares.

    Attributes:
        version: of the server it claims to be.
        chance: so many random bytes.
    """

    version: tuple[int, ...]
    counters: Counters
    faults: Faults
    offload: Offload
    chance: Callable[[int], bytes]
    verify_new: Callable[[Datastore, Place, BackupRef], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupStart:
    """What a backup begins with.

    Attributes:
        base: the previous backup, if it may serve as one.
        locks: held until the session ends.
    """

    datastore: Datastore
    place: Place
    backup: BackupRef
    base: BackupRef | None
    is_benchmark: bool
    begun_s: float
    locks: tuple[Lock, ...] = field(repr=False)


class BackupSession:
    """A backup in the making."""

    def __init__(self, start: BackupStart, tools: SessionTools) -> None:
        self._start = start
        self._tools = tools
        self._datastore = start.datastore
        self._known_bytes: dict[bytes, int] = {}
        self._uploaded: set[bytes] = set()
        self._writers: dict[int, FixedWriter | DynamicWriter] = {}
        self._writer_count = 0
        self._file_count = 0
        self._is_finished = False
        self._stats = ChunkUploadStats(count=0, size_bytes=0, compressed_bytes=0, duplicate_count=0)
        self.endpoints: dict[str, _Endpoint] = {
            "POST /blob": self._take_data_blob,
            "POST /dynamic_chunk": self._take_chunk,
            "POST /dynamic_close": self._close_writer,
            "POST /dynamic_index": self._open_dynamic,
            "PUT /dynamic_index": self._append,
            "POST /finish": self._finish,
            "POST /fixed_chunk": self._take_chunk,
            "POST /fixed_close": self._close_writer,
            "POST /fixed_index": self._open_fixed,
            "PUT /fixed_index": self._append,
            "GET /previous": self._send_previous,
            "GET /previous_backup_time": self._tell_previous_time,
            "POST /speedtest": self._take_anything,
        }

    def end(self) -> None:
        """The connection is gone: an unfinished backup goes with it, its chunks stay."""
        if not self._is_finished or self._start.is_benchmark:
            self._datastore.files.remove(self._path())
        for lock in self._start.locks:
            lock.release()

    @property
    def begun_s(self) -> float:
        return self._start.begun_s

    def named_digests(self) -> set[bytes]:
        """What the open indexes name, for garbage collection."""
        return set().union(*(writer.named_digests() for writer in self._writers.values()))

    # -- blobs and chunks ---------------------------------------------------------------------

    async def _take_data_blob(self, request: Request) -> Reply:
        values = check_parameters(request, _UPLOAD_BLOB, is_upload=True)
        name = values["file-name"]
        self._check_open()
        if not name.endswith(".blob"):
            raise ApiError(f"wrong blob file extension: '{name}'")
        encoded = check_data_blob(request, values["encoded-size"])
        self._write(name, encoded)
        self._file_count += 1
        return data_reply(None)

    async def _take_chunk(self, request: Request) -> Reply:
        values = check_parameters(request, _UPLOAD_CHUNK, is_upload=True)
        self._check_open()
        chunk = UploadedChunk(
            digest=bytes.fromhex(values["digest"]),
            content_bytes=values["size"],
            encoded_bytes=values["encoded-size"],
            request=request,
        )
        encoded = await self._tools.offload(chunk.check)
        self._check_open()
        inserted = self._datastore.chunks.insert(chunk.digest, encoded)
        self._spoil(request.endpoint, chunk.digest, encoded)
        writer = self._writer(request, values["wid"])
        writer.count_upload(chunk.content_bytes)
        self._count(chunk, inserted.stored_bytes, is_duplicate=inserted.is_duplicate)
        self._known_bytes[chunk.digest] = chunk.content_bytes
        self._uploaded.add(chunk.digest)
        return data_reply(values["digest"])

    def _spoil(self, endpoint: str, digest: bytes, encoded: bytes) -> None:
        kinds = (FaultKind.CHUNK_LOST, FaultKind.CHUNK_DAMAGED)
        fault = self._tools.faults.take(endpoint, *kinds)
        if fault is None:
            return
        if fault.kind is FaultKind.CHUNK_LOST:
            self._datastore.chunks.remove(digest)
        else:
            self._datastore.chunks.replace(digest, flip_last_bit(encoded))

    def _count(self, chunk: UploadedChunk, stored_bytes: int, *, is_duplicate: bool) -> None:
        self._stats = replace(
            self._stats,
            count=self._stats.count + 1,
            size_bytes=self._stats.size_bytes + chunk.content_bytes,
            compressed_bytes=self._stats.compressed_bytes + stored_bytes,
            duplicate_count=self._stats.duplicate_count + is_duplicate,
        )
        counters = self._tools.counters
        counters.received_chunk_count += 1
        counters.received_chunk_bytes += chunk.encoded_bytes
        counters.received_content_bytes += chunk.content_bytes
        counters.duplicate_chunk_count += is_duplicate

    # -- indexes ------------------------------------------------------------------------------

    async def _open_fixed(self, request: Request) -> Reply:
        is_growing = self._tools.version >= _GROWING_SINCE
        values = check_parameters(request, _OPEN_FIXED if is_growing else _OPEN_FIXED_OLD)
        self._check_open()
        name, size_bytes = values["archive-name"], values.get("size")
        if not name.endswith(".fidx"):
            raise ApiError(f"wrong archive extension: '{name}'")
        base = None
        if "reuse-csum" in values:
            if size_bytes is None:
                raise ApiError("size is required for incremental backups")
            base = self._reusable(name, bytes.fromhex(values["reuse-csum"]))
        writer_id = self._next_writer_id()
        self._writers[writer_id] = FixedWriter(
            name, writer_id=writer_id, size_bytes=size_bytes, base=base
        )
        self._write(f"{name.removesuffix('fidx')}tmp_fidx", b"")
        return data_reply(writer_id)

    async def _open_dynamic(self, request: Request) -> Reply:
        values = check_parameters(request, (_FILE,))
        self._check_open()
        name = values["archive-name"]
        if not name.endswith(".didx"):
            raise ApiError(f"wrong archive extension: '{name}'")
        writer_id = self._next_writer_id()
        self._writers[writer_id] = DynamicWriter(name, writer_id=writer_id)
        self._write(f"{name.removesuffix('didx')}tmp_didx", b"")
        return data_reply(writer_id)

    def _reusable(self, name: str, index_csum: bytes) -> FixedIndex:
        if self._start.base is None:
            raise ApiError("cannot reuse index - no valid previous backup exists")
        try:
            raw = self._datastore.read_file(self._start.place, self._start.base, name)
        except OSError as error:
            raise ApiError("cannot reuse index - no previous backup exists for archive") from error
        try:
            index = FixedIndex.decode(raw)
        except PbsError as error:
            raise ApiError(error.message) from error
        last_csum = index.index_csum()
        if last_csum != index_csum:
            raise ApiError(
                f"expected csum ({index_csum.hex()}) doesn't match last backup's "
                f"({last_csum.hex()}), cannot do incremental backup"
            )
        return index

    async def _append(self, request: Request) -> Reply:
        values = check_parameters(request, _APPEND)
        self._check_open()
        digests, offsets = values["digest-list"], values["offset-list"]
        if len(digests) != len(offsets):
            raise ApiError(f"offset list has wrong length ({len(digests)} != {len(offsets)})")
        counters = self._tools.counters
        for text, offset_bytes in zip(digests, offsets, strict=True):
            digest = bytes.fromhex(text)
            if digest not in self._known_bytes:
                raise ApiError(f"no such chunk {text}")
            self._writer(request, values["wid"]).append(
                digest, content_bytes=self._known_bytes[digest], offset_bytes=offset_bytes
            )
            counters.appended_chunk_count += 1
            counters.reused_chunk_count += digest not in self._uploaded
        return data_reply(None)

    async def _close_writer(self, request: Request) -> Reply:
        is_fixed = request.path == "/fixed_close"
        values = check_parameters(request, _CLOSE_FIXED if is_fixed else _CLOSE_DYNAMIC)
        self._check_open()
        writer = self._writer(request, values["wid"])
        del self._writers[values["wid"]]
        stamp = IndexStamp(
            uuid=self._tools.chance(layout.UUID_BYTES), ctime_s=int(self._datastore.now_s())
        )
        closing = Closing(
            chunk_count=values["chunk-count"],
            size_bytes=values["size"],
            index_csum=bytes.fromhex(values["csum"]),
        )
        self._write(writer.name, writer.close(closing, stamp))
        stem, _, suffix = writer.name.rpartition(".")
        self._datastore.files.remove(f"{self._path()}/{stem}.tmp_{suffix}")
        self._file_count += 1
        return data_reply(None)

    # -- the previous backup ------------------------------------------------------------------

    async def _send_previous(self, request: Request) -> Reply:
        name = check_parameters(request, (_FILE,))["archive-name"]
        self._check_open()
        if self._start.base is None:
            raise ApiError("no valid previous backup")
        path = f"{self._datastore.root}/{self._start.place.backup_path(self._start.base)}/{name}"
        try:
            raw = self._datastore.read_file(self._start.place, self._start.base, name)
        except OSError as error:
            text = render_os_error(error)
            if name.endswith(".fidx"):
                raise ApiError(f'Unable to open fixed index "{path}" - {text}') from error
            if name.endswith(".didx"):
                raise ApiError(f'Unable to open dynamic index "{path}" - {text}') from error
            raise ApiError(f'open file "{path}" failed - not found', status=404) from error
        try:
            self._known_bytes.update(chunks_of_index(name, raw))
        except PbsError as error:
            raise ApiError(error.message) from error
        return file_reply(raw)

    async def _tell_previous_time(self, request: Request) -> Reply:
        check_parameters(request, ())
        base = self._start.base
        return data_reply(None if base is None else base.backup_time_s)

    # -- the end ------------------------------------------------------------------------------

    async def _finish(self, request: Request) -> Reply:
        check_parameters(request, ())
        self._check_open()
        if self._writers:
            raise ApiError("found open index writer - unable to finish backup")
        start = self._start
        if start.is_benchmark:
            self._is_finished = True
            return data_reply(None)
        if not self._file_count:
            raise ApiError("backup does not contain valid files (file count == 0)")
        try:
            self._datastore.change_unprotected(
                start.place, start.backup, lambda part: replace(part, upload_stats=self._stats)
            )
        except (OSError, PbsError) as error:
            text = render_os_error(error) if isinstance(error, OSError) else error.message
            raise ApiError(f"unable to update manifest blob - {text}") from error
        if start.base is not None and not self._datastore.has_backup(start.place, start.base):
            raise ApiError(
                f"base snapshot {start.base.path} was removed during backup, "
                "cannot finish as chunks might be missing"
            )
        self._is_finished = True
        self._tools.counters.finished_count += 1
        if self._tools.verify_new is not None:
            self._tools.verify_new(self._datastore, start.place, start.backup)
        return data_reply(None)

    async def _take_anything(self, request: Request) -> Reply:
        check_parameters(request, (), is_upload=True)
        return data_reply(None)

    def _check_open(self) -> None:
        if self._is_finished:
            raise ApiError("backup already marked as finished.")

    def _next_writer_id(self) -> int:
        self._writer_count += 1
        return self._writer_count

    def _writer(self, request: Request, writer_id: int) -> FixedWriter | DynamicWriter:
        kind = request.path.removeprefix("/").partition("_")[0]
        writer = self._writers.get(writer_id)
        if writer is None or writer.kind != kind:
            raise ApiError(f"{kind} writer '{writer_id}' not registered")
        return writer

    def _path(self) -> str:
        return self._start.place.backup_path(self._start.backup)

    def _write(self, name: str, content: bytes) -> None:
        path = f"{self._path()}/{name}"
        try:
            self._datastore.files.write(path, content)
        except OSError as error:
            raise ApiError(
                f'unable to write file "{self._datastore.root}/{path}" - {render_os_error(error)}'
            ) from error


def chunks_of_index(name: str, raw: bytes) -> dict[bytes, int]:
    """Digests and content lengths that an index file names; none of any other file.

    Raises:
        PbsCorrupt: no index.
    """
    if name.endswith(".fidx"):
        index = FixedIndex.decode(raw)
        length_bytes = index.geometry.chunk_length_bytes
        return {digest: length_bytes(place) for place, digest in enumerate(index)}
    if name.endswith(".didx"):
        lengths: dict[bytes, int] = {}
        begin_bytes = 0
        for entry in DynamicIndex.decode(raw):
            lengths[entry.digest] = entry.end_bytes - begin_bytes
            begin_bytes = entry.end_bytes
        return lengths
    return {}


def flip_last_bit(encoded: bytes) -> bytes:
    """The same bytes with the smallest damage that there can be."""
    return encoded[:-1] + bytes([encoded[-1] ^ 1])


def endpoint_list(endpoints: Iterable[str]) -> list[dict[str, str]]:
    """What ``GET /`` says of a session."""
    names = sorted({endpoint.partition("/")[2] for endpoint in endpoints})
    return [{"subdir": name} for name in names]
