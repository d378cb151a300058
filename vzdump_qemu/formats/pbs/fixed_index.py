"""Fixed indexes (`.fidx`): which chunks make up a disk.

Owns geometry, digests and their sum; the chunks themselves are in `data_blob`. A builder is also
how a client keeps the sum of what it has appended, in any order. Source: PBS formats, sections 4
and 7.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from vzdump_qemu.errors import PbsCorrupt, PbsError
from vzdump_qemu.formats.pbs import layout
from vzdump_qemu.formats.pbs.index_header import (
    IndexHeader,
    IndexStamp,
    decode_index_header,
    encode_index_header,
)
from vzdump_qemu.units import ceil_div


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedGeometry:
    """How a disk is cut: whole chunks, the last one as short as the disk needs.

    Raises:
        PbsError: an empty disk, or a chunk size that no server knows.
    """

    size_bytes: int
    chunk_bytes: int = layout.CHUNK_BYTES

    def __post_init__(self) -> None:
        chunk_bytes = self.chunk_bytes
        if not layout.INDEX_CHUNK_BYTES_MIN <= chunk_bytes <= layout.CHUNK_BYTES or chunk_bytes & (
            chunk_bytes - 1
        ):
            raise PbsError(f"got unknown chunk size {chunk_bytes}")
        if self.size_bytes < 1:
            raise PbsError(f"a disk of {self.size_bytes} bytes has no index")

    @property
    def chunk_count(self) -> int:
        return ceil_div(self.size_bytes, self.chunk_bytes)

    @property
    def index_bytes(self) -> int:
        """Length of the index file."""
        return layout.INDEX_HEADER_BYTES + self.chunk_count * layout.DIGEST_BYTES

    def chunk_offset_bytes(self, chunk_index: int) -> int:
        """Where in the disk the chunk begins.

        Raises:
            PbsError: beyond the end of the disk.
        """
        self.check_index(chunk_index)
        return chunk_index * self.chunk_bytes

    def chunk_length_bytes(self, chunk_index: int) -> int:
        """How long the chunk is; less than a whole one only at the end of the disk.

        Raises:
            PbsError: beyond the end of the disk.
        """
        return min(self.chunk_bytes, self.size_bytes - self.chunk_offset_bytes(chunk_index))

    def check_index(self, chunk_index: int) -> None:
        """Raise PbsError if the disk has no such chunk."""
        if not 0 <= chunk_index < self.chunk_count:
            raise PbsError(f"chunk {chunk_index} is beyond the end ({self.chunk_count} chunks)")


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedIndex:
    """A whole index.

    Attributes:
        digests: 32 bytes of each chunk, adjacent, in the order of the disk.
        stored_csum: as the file has it; compare `index_csum`, never trust this.
    """

    geometry: FixedGeometry
    stamp: IndexStamp
    stored_csum: bytes
    digests: layout.Buffer = field(repr=False)

    @classmethod
    def decode(
        cls, raw: layout.Buffer, *, size_bytes_max: int = layout.DISK_BYTES_MAX
    ) -> FixedIndex:
        """Read an index file; the digests are a view of it.

        Args:
            size_bytes_max: of the disk that is described.

        Raises:
            PbsCorrupt: no fixed index, or a length that is not what the header asks for.
        """
        header = decode_index_header(layout.FIXED_INDEX_MAGIC, raw)
        if header.size_bytes > size_bytes_max:
            raise PbsCorrupt(f"index describes {header.size_bytes} bytes, over {size_bytes_max}")
        try:
            geometry = FixedGeometry(size_bytes=header.size_bytes, chunk_bytes=header.chunk_bytes)
        except PbsError as error:
            raise PbsCorrupt(error.message) from error
        if len(raw) != geometry.index_bytes:
            raise PbsCorrupt(f"got unexpected file size ({geometry.index_bytes} != {len(raw)})")
        return cls(
            geometry=geometry,
            stamp=header.stamp,
            stored_csum=header.index_csum,
            digests=memoryview(raw)[layout.INDEX_HEADER_BYTES :],
        )

    def digest(self, chunk_index: int) -> bytes:
        """Digest of one chunk.

        Raises:
            PbsError: beyond the end of the disk.
        """
        self.geometry.check_index(chunk_index)
        begin = chunk_index * layout.DIGEST_BYTES
        return bytes(self.digests[begin : begin + layout.DIGEST_BYTES])

    def __iter__(self) -> Iterator[bytes]:
        """The digests in the order of the disk."""
        view = memoryview(self.digests)
        for begin in range(0, len(view), layout.DIGEST_BYTES):
            yield bytes(view[begin : begin + layout.DIGEST_BYTES])

    def index_csum(self) -> bytes:
        """The sum over all digests, computed."""
        return hashlib.sha256(self.digests).digest()

    def check(self, *, index_csum: bytes, size_bytes: int) -> None:
        """Raise PbsCorrupt unless sum and size are what a manifest says of this index."""
        if self.geometry.size_bytes != size_bytes:
            raise PbsCorrupt(f"wrong size ({size_bytes} != {self.geometry.size_bytes})")
        if self.index_csum() != index_csum:
            raise PbsCorrupt("wrong index checksum")


class FixedIndexBuilder:
    """An index in the making: digests come in any order, and may be replaced.

    Args:
        base: an index of the same geometry, all of whose digests are taken over.
        size_bytes_max: what is refused, as the digests are held in memory: 8 MiB per TiB.

    Raises:
        PbsError: over the limit, or a base of another geometry.
    """

    __slots__ = ("_digests", "_geometry", "_is_set", "_missing_count")

    def __init__(
        self,
        geometry: FixedGeometry,
        *,
        base: FixedIndex | None = None,
        size_bytes_max: int = layout.DISK_BYTES_MAX,
    ) -> None:
        if geometry.size_bytes > size_bytes_max:
            raise PbsError(f"a disk of {geometry.size_bytes} bytes is over {size_bytes_max}")
        if base is not None and base.geometry != geometry:
            raise PbsError("cannot reuse index - the disk has another size")
        self._geometry = geometry
        count = geometry.chunk_count
        self._digests = bytearray(count * layout.DIGEST_BYTES if base is None else base.digests)
        self._is_set = bytearray(count if base is None else b"\1" * count)
        self._missing_count = count if base is None else 0

    @property
    def geometry(self) -> FixedGeometry:
        return self._geometry

    @property
    def missing_count(self) -> int:
        """How many chunks have no digest yet."""
        return self._missing_count

    def set_digest(self, chunk_index: int, digest: bytes) -> None:
        """Name the chunk at a place of the disk.

        Raises:
            PbsError: beyond the end of the disk, or not 32 bytes.
        """
        self._geometry.check_index(chunk_index)
        if len(digest) != layout.DIGEST_BYTES:
            raise PbsError(f"digest has {len(digest)} bytes instead of {layout.DIGEST_BYTES}")
        begin = chunk_index * layout.DIGEST_BYTES
        self._digests[begin : begin + layout.DIGEST_BYTES] = digest
        self._missing_count -= not self._is_set[chunk_index]
        self._is_set[chunk_index] = 1

    def index_csum(self) -> bytes:
        """The sum over all digests.

        Raises:
            PbsError: a chunk has none.
        """
        self._check_complete()
        return hashlib.sha256(self._digests).digest()

    def finish(self, stamp: IndexStamp) -> FixedIndex:
        """The index as it is now; the builder may go on.

        Raises:
            PbsError: a chunk has no digest.
        """
        return FixedIndex(
            geometry=self._geometry,
            stamp=stamp,
            stored_csum=self.index_csum(),
            digests=bytes(self._digests),
        )

    def _check_complete(self) -> None:
        if self._missing_count:
            raise PbsError(
                f"{self._missing_count} of {self._geometry.chunk_count} chunks are missing, "
                f"the first is {self._is_set.index(0)}"
            )


def encode_fixed_index(index: FixedIndex) -> bytes:
    """The index file, with the sum as stored.

    Raises:
        PbsError: a uuid or time that the header cannot hold.
    """
    header = IndexHeader(
        stamp=index.stamp,
        index_csum=index.stored_csum,
        size_bytes=index.geometry.size_bytes,
        chunk_bytes=index.geometry.chunk_bytes,
    )
    return b"".join((encode_index_header(layout.FIXED_INDEX_MAGIC, header), index.digests))
