"""The bytes behind an upgrade: counted, and spoiled as the fault script asks.

Owns cutting after so many bytes and the pace; on HTTP/1.1 nothing is counted or spoiled.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from vzdump_qemu.formats.pbs.layout import Buffer
from vzsim.fakepbs.bulk_reader import BulkReader
from vzsim.fakepbs.counters import Counters
from vzsim.fakepbs.faults import FaultKind, Faults

# What reading and writing raise where the client is gone; TLS has its own word for it.
CONNECTION_LOST: Final = (ConnectionError, ssl.SSLError)
# A slow connection moves in steps of this part of a second.
_STEPS_PER_S: Final = 20


class ByteReader(Protocol):
    """What is read of a stream."""

    async def read(self, n: int, /) -> Buffer:
        """What is there, good until the next call; nothing at the end."""
        ...


class ByteWriter(Protocol):
    """What is written to a stream."""

    def write(self, buffers: Sequence[Buffer], /) -> None: ...

    async def drain(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoiling:
    """What goes wrong on one connection; None where nothing does."""

    cut_after_bytes: int | None
    cut_sending_after_bytes: int | None
    bytes_per_s: int | None

    @classmethod
    def draw(cls, faults: Faults, endpoint: str) -> Spoiling:
        """What the script has for an upgrade."""
        limits = [
            None if fault is None else fault.bytes
            for fault in (
                faults.take(endpoint, FaultKind.CUT),
                faults.take(endpoint, FaultKind.CUT_SENDING),
                faults.take(endpoint, FaultKind.SLOW),
            )
        ]
        return cls(
            cut_after_bytes=limits[0], cut_sending_after_bytes=limits[1], bytes_per_s=limits[2]
        )


class SpoiledStreams:
    """Both directions of one connection."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        spoiling: Spoiling,
        counters: Counters,
    ) -> None:
        self._reader = BulkReader(reader, writer)
        self._writer = writer
        self._spoiling = spoiling
        self._counters = counters
        self._received_bytes = 0
        self._sent_bytes = 0
        self._unpaced_bytes = 0

    async def read(self, n: int, /) -> Buffer:
        spoiling = self._spoiling
        if spoiling.bytes_per_s is not None:
            n = max(1, min(n, spoiling.bytes_per_s // _STEPS_PER_S))
        if spoiling.cut_after_bytes is not None:
            rest_bytes = spoiling.cut_after_bytes - self._received_bytes
            if rest_bytes <= 0:
                self._writer.transport.abort()
                return b""
            n = min(n, rest_bytes)
        data = await self._reader.read(n)
        self._received_bytes += len(data)
        self._counters.received_bytes += len(data)
        if spoiling.bytes_per_s is not None:
            await asyncio.sleep(len(data) / spoiling.bytes_per_s)
        return data

    def write(self, buffers: Sequence[Buffer], /) -> None:
        limit_bytes = self._spoiling.cut_sending_after_bytes
        length_bytes = sum(len(buffer) for buffer in buffers)
        if limit_bytes is not None and self._sent_bytes + length_bytes > limit_bytes:
            self._writer.write(b"".join(buffers)[: max(0, limit_bytes - self._sent_bytes)])
            self._writer.close()
        else:
            self._writer.writelines(buffers)
        self._sent_bytes += length_bytes
        self._unpaced_bytes += length_bytes
        self._counters.sent_bytes += length_bytes

    async def drain(self) -> None:
        await self._reader.drain()
        unpaced_bytes, self._unpaced_bytes = self._unpaced_bytes, 0
        if self._spoiling.bytes_per_s is not None:
            await asyncio.sleep(unpaced_bytes / self._spoiling.bytes_per_s)
