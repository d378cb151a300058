"""Dynamic indexes (`.didx`): chunks of any length, as archives of files use them.

Owns reading, writing and checking them. Backups of VMs have none; they are known here so that a
server and a verification can treat every backup alike. Source: PBS formats, section 7.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from vzdump_qemu.errors import PbsCorrupt, PbsError
from vzdump_qemu.formats.pbs import layout
from vzdump_qemu.formats.pbs.index_header import (
    IndexHeader,
    IndexStamp,
    decode_index_header,
    encode_index_header,
)

_RECORD_BYTES = layout.DYNAMIC_RECORD_STRUCT.size


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicEntry:
    """One chunk of a dynamic index; it begins where the one before ends."""

    end_bytes: int
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicIndex:
    """A whole index.

    Attributes:
        stored_csum: as the file has it; compare `index_csum`, never trust this.
        records: 40 bytes of each chunk, adjacent, checked to rise.
    """

    stamp: IndexStamp
    stored_csum: bytes
    records: layout.Buffer = field(repr=False)

    @classmethod
    def decode(
        cls, raw: layout.Buffer, *, chunk_count_max: int = layout.DYNAMIC_RECORD_COUNT_MAX
    ) -> DynamicIndex:
        """Read an index file; the records are a view of it.

        Raises:
            PbsCorrupt: no dynamic index, one without chunks, a length that is no whole number
                of records, or a chunk that is empty or over 16 MiB.
        """
        header = decode_index_header(layout.DYNAMIC_INDEX_MAGIC, raw)
        records = memoryview(raw)[layout.INDEX_HEADER_BYTES :]
        if not len(records) or len(records) % _RECORD_BYTES:
            raise PbsCorrupt(f"got unexpected file size ({len(raw)})")
        if len(records) // _RECORD_BYTES > chunk_count_max:
            raise PbsCorrupt(f"index has more than {chunk_count_max} chunks")
        _check_ends(end_bytes for end_bytes, _ in layout.DYNAMIC_RECORD_STRUCT.iter_unpack(records))
        return cls(stamp=header.stamp, stored_csum=header.index_csum, records=records)

    @property
    def chunk_count(self) -> int:
        return len(self.records) // _RECORD_BYTES

    @property
    def size_bytes(self) -> int:
        """Length of the content, where the last chunk ends."""
        return self.entry(self.chunk_count - 1).end_bytes

    def entry(self, chunk_index: int) -> DynamicEntry:
        """One chunk.

        Raises:
            PbsError: there is none of that number.
        """
        if not 0 <= chunk_index < self.chunk_count:
            raise PbsError(f"chunk {chunk_index} is beyond the end ({self.chunk_count} chunks)")
        end_bytes, digest = layout.DYNAMIC_RECORD_STRUCT.unpack_from(
            self.records, chunk_index * _RECORD_BYTES
        )
        return DynamicEntry(end_bytes=end_bytes, digest=digest)

    def chunk_index_at(self, offset_bytes: int) -> int:
        """Number of the chunk that holds the byte at an offset.

        Raises:
            PbsError: beyond the end of the content.
        """
        if not 0 <= offset_bytes < self.size_bytes:
            raise PbsError(f"offset {offset_bytes} is beyond the end ({self.size_bytes} bytes)")
        return bisect.bisect_right(
            range(self.chunk_count), offset_bytes, key=lambda index: self.entry(index).end_bytes
        )

    def __iter__(self) -> Iterator[DynamicEntry]:
        """The chunks in order."""
        for end_bytes, digest in layout.DYNAMIC_RECORD_STRUCT.iter_unpack(self.records):
            yield DynamicEntry(end_bytes=end_bytes, digest=digest)

    def index_csum(self) -> bytes:
        """The sum over all ends and digests, computed."""
        return hashlib.sha256(self.records).digest()

    def check(self, *, index_csum: bytes, size_bytes: int) -> None:
        """Raise PbsCorrupt unless sum and size are what a manifest says of this index."""
        if self.size_bytes != size_bytes:
            raise PbsCorrupt(f"wrong size ({size_bytes} != {self.size_bytes})")
        if self.index_csum() != index_csum:
            raise PbsCorrupt("wrong index checksum")


def build_dynamic_index(entries: Iterable[DynamicEntry], stamp: IndexStamp) -> DynamicIndex:
    """An index of chunks in order.

    Raises:
        PbsError: no chunks, or one that is empty, over 16 MiB or without a digest of 32 bytes.
    """
    records = bytearray()
    for entry in entries:
        if len(entry.digest) != layout.DIGEST_BYTES:
            raise PbsError(f"digest has {len(entry.digest)} bytes")
        if not 0 <= entry.end_bytes < 1 << 64:
            raise PbsError(f"chunk ends at {entry.end_bytes}")
        records += layout.DYNAMIC_RECORD_STRUCT.pack(entry.end_bytes, entry.digest)
    if not records:
        raise PbsError("a dynamic index has one chunk at least")
    _check_ends(end_bytes for end_bytes, _ in layout.DYNAMIC_RECORD_STRUCT.iter_unpack(records))
    content = bytes(records)
    return DynamicIndex(stamp=stamp, stored_csum=hashlib.sha256(content).digest(), records=content)


def encode_dynamic_index(index: DynamicIndex) -> bytes:
    """The index file, with the sum as stored.

    Raises:
        PbsError: a uuid or time that the header cannot hold.
    """
    header = IndexHeader(stamp=index.stamp, index_csum=index.stored_csum)
    return b"".join((encode_index_header(layout.DYNAMIC_INDEX_MAGIC, header), index.records))


def _check_ends(ends: Iterable[int]) -> None:
    begin_bytes = 0
    for chunk_index, end_bytes in enumerate(ends):
        if not 0 < end_bytes - begin_bytes <= layout.CHUNK_BYTES_MAX:
            raise PbsCorrupt(
                f"chunk {chunk_index} of {end_bytes - begin_bytes} bytes is out of range"
            )
        begin_bytes = end_bytes
