"""The backup protocol: one method for each endpoint.

Owns parameters, bodies and bounds of the calls; in which order they make a backup is decided by
`disk_upload` and `uploader`. The connection is the backup: a server forgets all of it if the
connection ends before `finish` was answered, so nothing here is ever tried again. Source: PBS
formats, sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from vzdump_qemu.errors import PbsError, PbsRefused
from vzdump_qemu.formats.pbs import BackupRef, DataBlob, FileKind, Namespace, parse_digest
from vzdump_qemu.formats.pbs.json_text import canonical_json
from vzdump_qemu.formats.pbs.layout import INDEX_BYTES_MAX, UPLOAD_BYTES_MAX, Buffer
from vzdump_qemu.stores.pbs.endpoint import PbsEndpoint
from vzdump_qemu.stores.pbs.h2_stream import SHORT_REPLY_BYTES_MAX, H2Client, H2Request
from vzdump_qemu.stores.pbs.http1 import BINARY_TYPE, JSON_TYPE
from vzdump_qemu.stores.pbs.replies import check_status, decode_data, unwrap

PROTOCOL: Final = "proxmox-backup-protocol-v1"
WRITER_ID_MAX: Final = 256
_NO_PREVIOUS: Final = "no valid previous backup"
_KINDS: Final = {FileKind.FIXED_INDEX: "fixed", FileKind.DYNAMIC_INDEX: "dynamic"}


def session_query(
    endpoint: PbsEndpoint, namespace: Namespace, backup: BackupRef
) -> list[tuple[str, str]]:
    """The parameters that name a backup of an endpoint's datastore."""
    query = [
        ("store", endpoint.repository.datastore),
        ("backup-type", backup.backup_group.backup_type.value),
        ("backup-id", backup.backup_group.backup_id),
        ("backup-time", str(backup.backup_time_s)),
    ]
    # Servers without namespaces refuse even the empty one.
    if not namespace.is_root:
        query.append(("ns", str(namespace)))
    return query


class BackupSession:
    """A backup in the making.

    Every method raises PbsRefused in the server's words, PbsUnreachable if the connection ended,
    PbsError for an answer that is none.
    """

    def __init__(self, client: H2Client, *, finish_timeout_s: float) -> None:
        self._client = client
        self._finish_timeout_s = finish_timeout_s

    @classmethod
    async def open(
        cls, endpoint: PbsEndpoint, namespace: Namespace, backup: BackupRef
    ) -> BackupSession:
        """Begin a backup; the server locks its group until the connection ends."""
        client = await endpoint.upgrade(
            "/api2/json/backup", session_query(endpoint, namespace, backup), protocol=PROTOCOL
        )
        return cls(client, finish_timeout_s=endpoint.timeouts.finish_s)

    def failure(self) -> PbsError | None:
        """Why the connection ended, if it did."""
        return self._client.failure

    async def close(self) -> None:
        """End the connection, and with it a backup that is not finished. Idempotent."""
        await self._client.close()

    def abort(self) -> None:
        """As `close`, at once and without a goodbye; from the thread of the event loop only."""
        self._client.abort()

    async def upload_blob(self, file_name: str, encoded: bytes) -> None:
        """Store an encoded blob as a file, replacing one of that name."""
        if len(encoded) > UPLOAD_BYTES_MAX:
            raise PbsError(f"file '{file_name}' is too large for a server ({len(encoded)} bytes)")
        await self._send(
            "/blob",
            [("file-name", file_name), ("encoded-size", str(len(encoded)))],
            [encoded],
        )

    async def create_index(
        self, kind: FileKind, index_name: str, *, size_bytes: int = 0, reuse_csum: bytes = b""
    ) -> int:
        """Begin an index and return the id of its writer.

        Args:
            size_bytes: of the content; fixed indexes only.
            reuse_csum: begins as a copy of the index of that name and sum in the previous backup.
        """
        query = [("archive-name", index_name)]
        if kind is FileKind.FIXED_INDEX:
            query.append(("size", str(size_bytes)))
        if reuse_csum:
            query.append(("reuse-csum", reuse_csum.hex()))
        data = await self._ask("POST", f"/{_kind(kind)}_index", query)
        writer_id = decode_data(data, int, what="writer id")
        if not 1 <= writer_id <= WRITER_ID_MAX:
            raise PbsError(f"server sent the writer id {writer_id}")
        return writer_id

    async def upload_chunk(
        self, kind: FileKind, writer_id: int, *, digest: bytes, size_bytes: int, chunk: DataBlob
    ) -> None:
        """Store a chunk; once this returns, indexes may name it.

        Args:
            size_bytes: of the content.
            chunk: its payload is not copied: leave it alone until this returns.
        """
        query = [
            ("wid", str(writer_id)),
            ("digest", digest.hex()),
            ("size", str(size_bytes)),
            ("encoded-size", str(chunk.encoded_bytes)),
        ]
        body: Sequence[Buffer] = (chunk.header, chunk.payload)
        data = await self._send(f"/{_kind(kind)}_chunk", query, body)
        answered = parse_digest(decode_data(data, str, what="digest"))
        if answered != digest:
            raise PbsError("server confirmed another chunk than was sent")

    async def append(
        self, kind: FileKind, writer_id: int, entries: Sequence[tuple[int, bytes]]
    ) -> None:
        """Name chunks in an index: where each begins, and its digest. Any order for fixed ones."""
        value = {
            "wid": writer_id,
            "digest-list": [digest.hex() for _, digest in entries],
            "offset-list": [offset_bytes for offset_bytes, _ in entries],
        }
        await self._put_json(f"/{_kind(kind)}_index", value)

    async def close_index(
        self,
        kind: FileKind,
        writer_id: int,
        *,
        chunk_count: int,
        size_bytes: int,
        index_csum: bytes,
    ) -> None:
        """End an index.

        Args:
            chunk_count: of what was appended.
            index_csum: over the whole index, what was reused included.
        """
        query = [
            ("wid", str(writer_id)),
            ("chunk-count", str(chunk_count)),
            ("size", str(size_bytes)),
            ("csum", index_csum.hex()),
        ]
        await self._ask("POST", f"/{_kind(kind)}_close", query)

    async def previous(self, file_name: str, *, bytes_max: int = INDEX_BYTES_MAX) -> bytes | None:
        """A file of the previous backup as stored, None if there is none.

        The chunks of an index are known to the server from then on: new indexes may name them.
        """
        request = H2Request(
            method="GET",
            path="/previous",
            query=[("archive-name", file_name)],
            reply_bytes_max=bytes_max,
        )
        reply = await self._client.request(request)
        if reply.status == 404:
            return None
        try:
            check_status(reply.status, reply.body, asked="GET /previous")
        except PbsRefused as error:
            if _NO_PREVIOUS in error.message or "Unable to open" in error.message:
                return None
            raise
        return reply.body

    async def previous_backup_time_s(self) -> int | None:
        """When the previous backup was made, None if there is none."""
        data = await self._ask("GET", "/previous_backup_time", ())
        return decode_data(data, int | None, what="time")  # type: ignore[arg-type]

    async def finish(self) -> None:
        """Make the backup final; only when this returns it exists."""
        # Silent for as long as the server's disks take, which no stall of the line may end.
        request = H2Request(
            method="POST", path="/finish", timeout_s=self._finish_timeout_s, may_stall=True
        )
        await self._data(request)

    async def speed_test(self, data: bytes) -> None:
        """Send something that the server throws away."""
        await self._send("/speedtest", (), [data])

    async def _send(
        self, path: str, query: Sequence[tuple[str, str]], body: Sequence[Buffer]
    ) -> bytes:
        request = H2Request(
            method="POST", path=path, query=query, body=body, content_type=BINARY_TYPE
        )
        return await self._data(request)

    async def _put_json(self, path: str, value: dict[str, Any]) -> None:
        request = H2Request(
            method="PUT", path=path, body=[canonical_json(value)], content_type=JSON_TYPE
        )
        await self._data(request)

    async def _ask(self, method: str, path: str, query: Sequence[tuple[str, str]]) -> bytes:
        return await self._data(H2Request(method=method, path=path, query=query))

    async def _data(self, request: H2Request) -> bytes:
        reply = await self._client.request(request)
        check_status(reply.status, reply.body, asked=f"{request.method} {request.path}")
        return unwrap(reply.body, bytes_max=SHORT_REPLY_BYTES_MAX)


def _kind(kind: FileKind) -> str:
    try:
        return _KINDS[kind]
    except KeyError:
        raise PbsError(f"{kind.value} is no index") from None
