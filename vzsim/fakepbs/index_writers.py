"""Indexes in the making, and the checks of every append and of the closing.

Owns what one writer id stands for; which chunks are known, and who may write, is the session's.
Source: PBS formats, section 4.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from vzdump_qemu.formats.pbs import layout
from vzdump_qemu.formats.pbs.dynamic_index import (
    DynamicEntry,
    build_dynamic_index,
    encode_dynamic_index,
)
from vzdump_qemu.formats.pbs.fixed_index import FixedGeometry, FixedIndex, encode_fixed_index
from vzdump_qemu.formats.pbs.index_header import IndexStamp
from vzdump_qemu.units import ceil_div
from vzsim.fakepbs.requests import ApiError

_NO_DIGEST: Final = bytes(layout.DIGEST_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """What a client says of an index when it closes it."""

    chunk_count: int
    size_bytes: int
    index_csum: bytes


class FixedWriter:
    """A fixed index in the making.

    Args:
        size_bytes: of the disk; None lets the index grow with what is appended.
        base: the previous index, whose digests hold until they are replaced.

    Raises:
        ApiError: the base has another count of chunks.
    """

    kind: Final = "fixed"

    def __init__(
        self, name: str, *, writer_id: int, size_bytes: int | None, base: FixedIndex | None = None
    ) -> None:
        self.name = name
        self._writer_id = writer_id
        self._declared_bytes = size_bytes
        self._end_bytes = 0
        self._appended_count = 0
        self._end_chunk_count = 0
        self._is_incremental = base is not None
        count = 0 if size_bytes is None else ceil_div(size_bytes, layout.CHUNK_BYTES)
        self._digests = bytearray(count * layout.DIGEST_BYTES)
        if base is not None:
            if base.geometry.chunk_count != count:
                raise ApiError("clone_data_from not allowed - index sizes not equal")
            self._digests[:] = base.digests

    def count_upload(self, content_bytes: int) -> None:
        """Take note of an uploaded chunk. Raises: ApiError for one too large or a second end."""
        if content_bytes > layout.CHUNK_BYTES:
            raise ApiError(
                f"fixed writer '{self.name}' - got large chunk "
                f"({content_bytes} > {layout.CHUNK_BYTES}"
            )
        if content_bytes < layout.CHUNK_BYTES:
            self._end_chunk_count += 1
            if self._end_chunk_count > 1:
                raise ApiError(
                    f"fixed writer '{self._writer_id}' - detected multiple end chunks "
                    "(chunk size too small)"
                )

    def append(self, digest: bytes, *, content_bytes: int, offset_bytes: int) -> None:
        """Name the chunk that begins at an offset. Raises: ApiError."""
        end_bytes = offset_bytes + content_bytes
        declared_bytes = self._declared_bytes
        if declared_bytes is not None and end_bytes > declared_bytes:
            raise ApiError(f"chunk data exceeds size ({end_bytes} >= {declared_bytes})")
        is_last = declared_bytes in (None, end_bytes)
        if content_bytes != layout.CHUNK_BYTES and not is_last:
            raise ApiError(f"chunk with unexpected length ({content_bytes} != {layout.CHUNK_BYTES}")
        if offset_bytes % layout.CHUNK_BYTES:
            raise ApiError(f"got unaligned chunk (pos = {offset_bytes})")
        begin = offset_bytes // layout.CHUNK_BYTES * layout.DIGEST_BYTES
        if begin > len(self._digests):
            self._digests.extend(bytes(begin - len(self._digests)))
        self._digests[begin : begin + layout.DIGEST_BYTES] = digest
        self._end_bytes = max(self._end_bytes, end_bytes)
        self._appended_count += 1

    def close(self, closing: Closing, stamp: IndexStamp) -> bytes:
        """The index file. Raises: ApiError unless everything is as the client says."""
        failed = f"fixed writer '{self.name}' close failed -"
        if self._appended_count != closing.chunk_count:
            raise ApiError(
                f"{failed} received wrong number of chunk "
                f"({self._appended_count} != {closing.chunk_count})"
            )
        size_bytes = self._end_bytes if self._declared_bytes is None else self._declared_bytes
        if not self._is_incremental:
            expected_count = ceil_div(size_bytes, layout.CHUNK_BYTES)
            if closing.chunk_count != expected_count:
                raise ApiError(
                    f"{failed} unexpected chunk count ({expected_count} != {closing.chunk_count})"
                )
            if closing.size_bytes != size_bytes:
                raise ApiError(
                    f"{failed} unexpected file size ({size_bytes} != {closing.size_bytes})"
                )
        index_csum = hashlib.sha256(self._digests).digest()
        if index_csum != closing.index_csum:
            raise ApiError(f"{failed} got unexpected checksum")
        return encode_fixed_index(
            FixedIndex(
                geometry=FixedGeometry(size_bytes=size_bytes),
                stamp=stamp,
                stored_csum=index_csum,
                digests=bytes(self._digests),
            )
        )

    def named_digests(self) -> set[bytes]:
        """What garbage collection must leave."""
        step = layout.DIGEST_BYTES
        found = {bytes(self._digests[i : i + step]) for i in range(0, len(self._digests), step)}
        return found - {_NO_DIGEST}


class DynamicWriter:
    """A dynamic index in the making: chunks come in order."""

    kind: Final = "dynamic"

    def __init__(self, name: str, *, writer_id: int) -> None:
        self.name = name
        self._writer_id = writer_id
        self._entries: list[DynamicEntry] = []

    def count_upload(self, content_bytes: int) -> None:
        """Chunks of any length that the upload itself allows."""

    def append(self, digest: bytes, *, content_bytes: int, offset_bytes: int) -> None:
        """Name the next chunk. Raises: ApiError if it does not begin where the last one ended."""
        begin_bytes = self._end_bytes
        if offset_bytes != begin_bytes:
            raise ApiError(
                f"dynamic writer '{self.name}' append chunk failed - got strange chunk offset "
                f"({begin_bytes} != {offset_bytes})"
            )
        self._entries.append(DynamicEntry(end_bytes=begin_bytes + content_bytes, digest=digest))

    def close(self, closing: Closing, stamp: IndexStamp) -> bytes:
        """The index file. Raises: ApiError unless everything is as the client says."""
        failed = f"dynamic writer '{self.name}' close failed -"
        if len(self._entries) != closing.chunk_count:
            raise ApiError(
                f"{failed} unexpected chunk count ({len(self._entries)} != {closing.chunk_count})"
            )
        if self._end_bytes != closing.size_bytes:
            raise ApiError(
                f"{failed} unexpected file size ({self._end_bytes} != {closing.size_bytes})"
            )
        index = build_dynamic_index(self._entries, stamp)
        if index.stored_csum != closing.index_csum:
            raise ApiError(
                f"{failed} unexpected checksum "
                f"({index.stored_csum.hex()} != {closing.index_csum.hex()})"
            )
        return encode_dynamic_index(index)

    def named_digests(self) -> set[bytes]:
        """What garbage collection must leave."""
        return {entry.digest for entry in self._entries}

    @property
    def _end_bytes(self) -> int:
        return self._entries[-1].end_bytes if self._entries else 0
