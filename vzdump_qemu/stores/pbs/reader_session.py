"""The reader protocol: one method for each endpoint.

Owns the calls and their bounds; what the bytes are is proved by `restore`. Source: PBS formats,
section 5.
"""

from __future__ import annotations

from typing import Final

from vzdump_qemu.formats.pbs import BackupRef, Namespace
from vzdump_qemu.formats.pbs.layout import ENCODED_BYTES_MAX
from vzdump_qemu.stores.pbs.backup_session import session_query
from vzdump_qemu.stores.pbs.endpoint import PbsEndpoint
from vzdump_qemu.stores.pbs.h2_stream import SHORT_REPLY_BYTES_MAX, H2Client, H2Request
from vzdump_qemu.stores.pbs.replies import check_status
from vzdump_qemu.units import MIB

PROTOCOL: Final = "proxmox-backup-reader-protocol-v1"
_SPEED_TEST_BYTES_MAX: Final = MIB


class ReaderSession:
    """A finished backup, open for reading; the server keeps it from being removed meanwhile.

    Every method raises PbsRefused in the server's words, PbsUnreachable if the connection ended,
    PbsError for an answer that is none.
    """

    def __init__(self, client: H2Client) -> None:
        self._client = client

    @classmethod
    async def open(
        cls, endpoint: PbsEndpoint, namespace: Namespace, backup: BackupRef
    ) -> ReaderSession:
        """Open a backup."""
        client = await endpoint.upgrade(
            "/api2/json/reader", session_query(endpoint, namespace, backup), protocol=PROTOCOL
        )
        return cls(client)

    async def close(self) -> None:
        """End the connection. Idempotent."""
        await self._client.close()

    async def download(self, file_name: str, *, bytes_max: int = ENCODED_BYTES_MAX) -> bytes:
        """A file as stored. Only the chunks of indexes that were downloaded can be read."""
        return await self._get("/download", ("file-name", file_name), bytes_max)

    async def chunk(self, digest: bytes, buffer: memoryview) -> memoryview:
        """An encoded chunk, put into the buffer, which bounds it; nothing is proved of it yet."""
        request = H2Request(
            method="GET", path="/chunk", query=(("digest", digest.hex()),), reply_buffer=buffer
        )
        reply = await self._client.request(request)
        encoded = buffer[: reply.length_bytes]
        if reply.status != 200:
            words = bytes(encoded[:SHORT_REPLY_BYTES_MAX])
            check_status(reply.status, words, asked="GET /chunk")
        return encoded

    async def speed_test(self) -> bytes:
        """A mebibyte of nothing."""
        return await self._get("/speedtest", None, _SPEED_TEST_BYTES_MAX)

    async def _get(self, path: str, parameter: tuple[str, str] | None, bytes_max: int) -> bytes:
        request = H2Request(
            method="GET",
            path=path,
            query=() if parameter is None else (parameter,),
            reply_bytes_max=bytes_max,
        )
        reply = await self._client.request(request)
        check_status(reply.status, reply.body, asked=f"GET {path}")
        return reply.body
