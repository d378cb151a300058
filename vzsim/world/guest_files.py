"""A journaling guest file system on several disks: what lies where, and what a replay makes of it.

Owns the layout and the rules of recovery, as pure functions over whole disk images. Every disk has
a superblock, a ring of journal records and pages spread over the rest. A transaction has a record
with the new pages on *every* disk before any page is written in place; it counts once all disks
have its record. Who writes when is left to `vzsim.world.writer`, judging to `vzsim.checkers`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

from vzsim.fakeqmp.disks import DiskContent

PAGE_BYTES = 1024
PAGES_PER_RECORD_MAX = 2
# A ring of records: the superblocks never lag behind by as many transactions.
RECORD_COUNT = 8
_PAGE_COUNT_MAX = 24
_PAGE_COUNT_MIN = 4
_SECTOR_BYTES = 512
_RECORD_BYTES = 5 * _SECTOR_BYTES
_PAGES_OFFSET = _SECTOR_BYTES + RECORD_COUNT * _RECORD_BYTES
_SUPERBLOCK = struct.Struct("<4sHHQ?")
_RECORD = struct.Struct("<4sHHIQ")
_PAGE = struct.Struct("<4sHHIQ")
_INDEX = struct.Struct("<H")
_SUM = struct.Struct("<I")
_SUPERBLOCK_MAGIC = b"vzsS"
_RECORD_MAGIC = b"vzsR"
_PAGE_MAGIC = b"vzsP"
_PAGE_REPEAT_COUNT = PAGE_BYTES // _PAGE.size + 1
_MEMO_COUNT = 4096

Bytes = bytes | bytearray | memoryview | DiskContent
PageKey = tuple[int, int]
"""Index of the disk, index of the page on it."""


class Version(NamedTuple):
    """Which write a page or record stems from: a transaction, and the mount it was begun in."""

    seq: int
    mount: int


class Superblock(NamedTuple):
    """Attributes: checkpoint_seq: pages of all transactions up to there are in place."""

    checkpoint_seq: int
    is_clean: bool


class Record(NamedTuple):
    """One disk's part of one transaction: whole new pages by their index."""

    version: Version
    pages: Mapping[int, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a mount of these disks finds.

    Attributes:
        last_seq: the last transaction that all disks have.
        needs_replay: something is to be done before the file system can be used.
        pages: every page as it is after the replay; None for one that is not whole.
        redone: the pages that the replay writes.
        faults: contradictions that no interruption of a good system can cause.
    """

    last_seq: int
    needs_replay: bool
    pages: Mapping[PageKey, Version | None]
    redone: Mapping[PageKey, bytes]
    faults: tuple[str, ...]


def page_count(disk_bytes: int) -> int:
    """Pages of a disk of that size; 0 if it is too small to take part."""
    count = min(_PAGE_COUNT_MAX, (disk_bytes - _PAGES_OFFSET) // PAGE_BYTES)
    return count if count >= _PAGE_COUNT_MIN else 0


# One guest after the other asks for the same few.
@lru_cache(maxsize=_MEMO_COUNT)
def page_offsets(disk_bytes: int) -> tuple[int, ...]:
    """Where the pages lie: they are spread from the journal's end to the end of the disk."""
    room_bytes = disk_bytes - PAGE_BYTES - _PAGES_OFFSET
    count = page_count(disk_bytes)
    spreads = (room_bytes * index // (count - 1) for index in range(count))
    return tuple(_PAGES_OFFSET + spread // _SECTOR_BYTES * _SECTOR_BYTES for spread in spreads)


def record_offset(seq: int) -> int:
    """Where the records of a transaction lie, on every disk."""
    return _SECTOR_BYTES + seq % RECORD_COUNT * _RECORD_BYTES


def _summed(data: bytes) -> bytes:
    return data + _SUM.pack(crc32(data))


def _is_whole(data: bytes) -> bool:
    return bool(_SUM.unpack(data[-_SUM.size :])[0] == crc32(data[: -_SUM.size]))


def encode_superblock(block: Superblock, disk_index: int, disk_count: int) -> bytes:
    """One sector for offset 0."""
    head = _SUPERBLOCK.pack(
        _SUPERBLOCK_MAGIC, disk_index, disk_count, block.checkpoint_seq, block.is_clean
    )
    return _summed(head.ljust(_SECTOR_BYTES - _SUM.size, b"\0"))


@lru_cache(maxsize=_MEMO_COUNT)
def encode_page(version: Version, key: PageKey) -> bytes:
    """A page full of what it is: any other write's bytes in it break its sum."""
    head = _PAGE.pack(_PAGE_MAGIC, *key, version.mount, version.seq)
    return _summed((head * _PAGE_REPEAT_COUNT)[: PAGE_BYTES - _SUM.size])


def encode_record(record: Record, disk_index: int) -> bytes:
    """A record for `record_offset` of its transaction."""
    version = record.version
    head = _RECORD.pack(_RECORD_MAGIC, disk_index, len(record.pages), version.mount, version.seq)
    parts = [head]
    for index, page in record.pages.items():
        parts += _INDEX.pack(index), page
    return _summed(b"".join(parts))


def _part(image: Bytes, offset_bytes: int, length_bytes: int) -> bytes:
    if isinstance(image, DiskContent):
        return image.read(offset_bytes, length_bytes)
    return bytes(image[offset_bytes : offset_bytes + length_bytes])


def decode_superblock(image: Bytes) -> Superblock | None:
    """The superblock of a disk, or None if there is no whole one."""
    data = _part(image, 0, _SECTOR_BYTES)
    if len(data) < _SECTOR_BYTES or not _is_whole(data):
        return None
    magic, _, _, checkpoint_seq, is_clean = _SUPERBLOCK.unpack_from(data)
    if magic != _SUPERBLOCK_MAGIC:
        return None
    return Superblock(checkpoint_seq=checkpoint_seq, is_clean=is_clean)


def _read_page(data: bytes, key: PageKey) -> Version | None:
    """Which write a page holds, or None if it is not one whole write of this very page."""
    _, _, _, mount, seq = _PAGE.unpack_from(data)
    version = Version(seq, mount)
    return version if data == encode_page(version, key) else None


def decode_record(image: Bytes, disk_index: int, ring_index: int) -> Record | None:
    """One record of a disk, or None if there is no whole one."""
    offset = _SECTOR_BYTES + ring_index * _RECORD_BYTES
    head = _part(image, offset, _RECORD.size)
    magic, owner, count, mount, seq = _RECORD.unpack(head)
    if magic != _RECORD_MAGIC or owner != disk_index or count > PAGES_PER_RECORD_MAX:
        return None
    part_bytes = _INDEX.size + PAGE_BYTES
    data = _part(image, offset, _RECORD.size + count * part_bytes + _SUM.size)
    if not _is_whole(data):
        return None
    pages = {}
    for at in range(_RECORD.size, len(data) - _SUM.size, part_bytes):
        pages[_INDEX.unpack_from(data, at)[0]] = data[at + _INDEX.size : at + part_bytes]
    return Record(version=Version(seq, mount), pages=pages)


def replay(images: Sequence[Bytes]) -> Replay:
    """Recover a file system from its disks, in their order, without changing them."""
    blocks = [decode_superblock(image) for image in images]
    broken = [f"disk {index} has no superblock" for index, block in enumerate(blocks) if not block]
    whole = [block for block in blocks if block is not None]
    if broken or not whole:
        return Replay(
            last_seq=0, needs_replay=True, pages={}, redone={}, faults=tuple(broken) or ("no disk",)
        )
    journals = [_read_journal(image, index) for index, image in enumerate(images)]
    base_seq = last_seq = min(block.checkpoint_seq for block in whole)
    redone: dict[PageKey, bytes] = {}
    while (records := _common_records(journals, last_seq + 1)) is not None:
        last_seq += 1
        for disk_index, record in enumerate(records):
            redone.update({(disk_index, at): page for at, page in record.pages.items()})
    pages: dict[PageKey, Version | None] = {}
    for disk_index, image in enumerate(images):
        for page_index, offset_bytes in enumerate(page_offsets(len(image))):
            key = disk_index, page_index
            pages[key] = _read_page(_part(image, offset_bytes, PAGE_BYTES), key)
    pages.update({key: _read_page(data, key) for key, data in redone.items()})
    all_clean = all(block.is_clean for block in whole)
    faults = _contradictions(whole, pages, last_seq)
    if all_clean and last_seq > base_seq:
        faults.append(f"marked clean, yet transaction {last_seq} waits in the journals")
    return Replay(
        last_seq=last_seq,
        needs_replay=last_seq > base_seq or not all_clean,
        pages=pages,
        redone=redone,
        faults=tuple(faults),
    )


def _read_journal(image: Bytes, disk_index: int) -> dict[int, Record]:
    found = (decode_record(image, disk_index, at) for at in range(RECORD_COUNT))
    return {record.version.seq: record for record in found if record is not None}


def _common_records(journals: Sequence[Mapping[int, Record]], seq: int) -> list[Record] | None:
    """The parts of one transaction on all disks, if all have it, of one and the same mount."""
    records = [record for journal in journals if (record := journal.get(seq)) is not None]
    mounts = {record.version.mount for record in records}
    return records if len(records) == len(journals) and len(mounts) == 1 else None


def _contradictions(
    blocks: Sequence[Superblock], pages: Mapping[PageKey, Version | None], last_seq: int
) -> list[str]:
    found = []
    for index, block in enumerate(blocks):
        if block.checkpoint_seq > last_seq:
            found.append(
                f"disk {index} has put transaction {block.checkpoint_seq} in place, "
                f"all disks together know only {last_seq}"
            )
    for (disk_index, page_index), version in pages.items():
        if version is None:
            found.append(f"page {page_index} of disk {disk_index} is torn")
        elif version.seq > last_seq:
            found.append(
                f"page {page_index} of disk {disk_index} is of transaction {version.seq}, "
                f"all disks together know only {last_seq}"
            )
    return found
