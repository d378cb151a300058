"""The header that fixed and dynamic index files share, 4096 bytes.

Owns its fields; the entries behind it are in `fixed_index` and `dynamic_index`.
Source: PBS formats, section 7.
"""

from __future__ import annotations

from dataclasses import dataclass

from vzdump_qemu.errors import PbsCorrupt, PbsError
from vzdump_qemu.formats.pbs import layout


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexStamp:
    """What a server puts into the header and no reader relies on.

    Attributes:
        uuid: 16 bytes.
        ctime_s: seconds since the epoch, any signed 64-bit value.
    """

    uuid: bytes
    ctime_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexHeader:
    """A whole header.

    Attributes:
        index_csum: as stored; to be computed again, never trusted.
        size_bytes: of the disk; 0 in a dynamic index.
        chunk_bytes: of one chunk; 0 in a dynamic index.
    """

    stamp: IndexStamp
    index_csum: bytes
    size_bytes: int = 0
    chunk_bytes: int = 0


def encode_index_header(magic: bytes, header: IndexHeader) -> bytes:
    """The 4096 bytes.

    Raises:
        PbsError: a uuid or time that the header cannot hold.
    """
    if len(header.stamp.uuid) != layout.UUID_BYTES:
        raise PbsError(
            f"index uuid has {len(header.stamp.uuid)} bytes instead of {layout.UUID_BYTES}"
        )
    if not -(1 << 63) <= header.stamp.ctime_s < 1 << 63:
        raise PbsError(f"index creation time {header.stamp.ctime_s} out of range")
    return layout.INDEX_STRUCT.pack(
        magic, header.stamp.uuid, header.stamp.ctime_s, header.index_csum,
        header.size_bytes, header.chunk_bytes,
    ).ljust(layout.INDEX_HEADER_BYTES, b"\0")  # fmt: skip


def decode_index_header(magic: bytes, raw: layout.Buffer) -> IndexHeader:
    """Read the header at the front of a file.

    Raises:
        PbsCorrupt: too short for one, or the header of something else.
    """
    if len(raw) < layout.INDEX_HEADER_BYTES:
        raise PbsCorrupt(f"index too small ({len(raw)})")
    found, uuid, ctime_s, index_csum, size_bytes, chunk_bytes = layout.INDEX_STRUCT.unpack_from(raw)
    if found != magic:
        raise PbsCorrupt("got unknown magic number")
    return IndexHeader(
        stamp=IndexStamp(uuid=uuid, ctime_s=ctime_s),
        index_csum=index_csum,
        size_bytes=size_bytes,
        chunk_bytes=chunk_bytes,
    )
