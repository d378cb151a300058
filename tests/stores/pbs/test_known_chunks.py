"""What is believed of the previous backup, and what is not."""

from __future__ import annotations

import random

from vzdump_qemu.formats.pbs import FixedGeometry, FixedIndex, FixedIndexBuilder, IndexStamp
from vzdump_qemu.stores.pbs.known_chunks import KnownChunks, PreviousIndex, reuse_refusal

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
