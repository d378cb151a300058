"""Zero detection against the plain question asked of each block."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from vzdump_qemu.formats.vma.zeroes import block_masks, stored_blocks


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 40), st.integers(0, 4095), st.lists(st.integers(0, 200_000), max_size=12))
def test_stored_blocks_any_bytes_set_agrees_with_any(
    whole_count: int, rest_bytes: int, places: list[int]
) -> None:
    data = bytearray(whole_count * 4096 + rest_bytes)
    for place in places:
        data[place % len(data)] = 1
    expected = [any(data[at : at + 4096]) for at in range(0, len(data), 4096)]
    stored = stored_blocks(memoryview(data))
    assert stored.tolist() == expected
    masks = block_masks(stored).tolist()
    assert [bool(masks[i // 16] >> (i % 16) & 1) for i in range(len(expected))] == expected
    assert sum(mask.bit_count() for mask in masks) == sum(expected)
