"""What is believed of the previous backup, and what is not."""

from __future__ import annotations

import asyncio
import random
from typing import cast

from vzdump_qemu.formats.pbs import (
    BackupGroup,
    BackupRef,
    BackupType,
    CryptMode,
    FixedGeometry,
    FixedIndex,
    FixedIndexBuilder,
    IndexStamp,
    Manifest,
    ManifestEntry,
    encode_fixed_index,
)
from vzdump_qemu.stores.pbs.backup_session import BackupSession
from vzdump_qemu.stores.pbs.known_chunks import (
    KnownChunks,
    PreviousBackup,
    PreviousIndex,
    fetch_previous_index,
    reuse_refusal,
)

CHUNK = 4 << 20
STAMP = IndexStamp(uuid=bytes(16), ctime_s=1)


def make_index(digests: list[bytes], size_bytes: int = 0) -> FixedIndex:
    builder = FixedIndexBuilder(FixedGeometry(size_bytes=size_bytes or len(digests) * CHUNK))
    for chunk_index, digest in enumerate(digests):
        builder.set_digest(chunk_index, digest)
    return builder.finish(STAMP)


def test_digests_of_all_indexes_are_known_and_no_others() -> None:
    chance = random.Random(1)
    # Zeroes at the end are what a text type would drop.
    digests = [chance.randbytes(32 - zeroes) + bytes(zeroes) for zeroes in range(33)]
    others = [digest[:-1] + b"\1" for digest in digests] + [b"\xff" * 32]
    known = KnownChunks()
    assert digests[0] not in known
    known.add_index(make_index(digests[:20]))
    known.add_index(make_index(digests[10:]))
    assert len(known) == 33
    assert all(digest in known for digest in digests)
    assert not any(digest in known for digest in others)


def test_index_is_reused_only_for_the_same_base_and_size() -> None:
    index = make_index([bytes([number]) * 32 for number in range(3)])
    found = PreviousIndex(index=index)
    size_bytes, base_csum = 3 * CHUNK, index.index_csum()
    assert reuse_refusal(found, size_bytes=size_bytes, base_csum=base_csum) == ""
    assert "size" in reuse_refusal(found, size_bytes=size_bytes - 512, base_csum=base_csum)
    assert "set of changes" in reuse_refusal(found, size_bytes=size_bytes, base_csum=bytes(32))
    gone = PreviousIndex(index=None, reason="why")
    assert reuse_refusal(gone, size_bytes=size_bytes, base_csum=base_csum) == "why"


class Asked:
    """A session that gives one index and notes how much of it was taken."""

    def __init__(self, index: FixedIndex) -> None:
        self._index = index
        self.bytes_max: list[int] = []

    async def previous(self, name: str, *, bytes_max: int) -> bytes:
        self.bytes_max.append(bytes_max)
        return encode_fixed_index(self._index)


def fetch(index: FixedIndex, *, stored_bytes: int, size_bytes: int) -> tuple[PreviousIndex, Asked]:
    name = "drive-scsi0.img.fidx"
    group = BackupGroup(backup_type=BackupType.VM, backup_id="100")
    entry = ManifestEntry(
        file_name=name,
        size_bytes=stored_bytes,
        csum=index.index_csum(),
        crypt_mode=CryptMode.NONE,
    )
    manifest = Manifest(
        backup=BackupRef(backup_group=group, backup_time_s=1_700_000_000), entries=(entry,)
    )
    session = Asked(index)
    found = asyncio.run(
        fetch_previous_index(
            cast(BackupSession, session),
            PreviousBackup(manifest=manifest),
            name,
            CryptMode.NONE,
            size_bytes=size_bytes,
        )
    )
    return found, session


def test_index_of_a_larger_disk_is_not_even_asked_for() -> None:
    index = make_index([bytes([number]) * 32 for number in range(3)])
    for stored_bytes in (3 * CHUNK + 1, 1 << 62):
        found, session = fetch(index, stored_bytes=stored_bytes, size_bytes=3 * CHUNK)
        assert found.index is None
        assert found.reason == "the disk has another size than in the previous backup"
        assert session.bytes_max == []


def test_index_of_a_disk_that_has_grown_is_taken_up_to_its_own_size() -> None:
    index = make_index([bytes([number]) * 32 for number in range(3)])
    found, session = fetch(index, stored_bytes=3 * CHUNK, size_bytes=100 * CHUNK)
    assert found.index is not None
    assert session.bytes_max == [4096 + 3 * 32]
