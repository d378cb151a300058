"""Finding blocks of zeroes, many clusters at a time.

Owns the block masks of data in memory. Source: VMA format, section 5.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from vzdump_qemu.formats.vma import layout

_WORDS_PER_BLOCK: Final = layout.VMA_BLOCK_BYTES // 8
# One word per cache line or so decides for almost every block that is not zero.
_PROBED_WORDS: Final = (0, _WORDS_PER_BLOCK // 2, _WORDS_PER_BLOCK - 1)
# So few doubtful blocks are copied faster than looked up stretch by stretch.
_FEW_BLOCKS: Final = 64


def stored_blocks(data: memoryview) -> npt.NDArray[np.bool_]:
    """Which blocks are not all zero: one bool per whole 4096-byte block of ``data``.

    A last partial block counts as a block of its own.
    """
    whole_count, rest_bytes = divmod(len(data), layout.VMA_BLOCK_BYTES)
    stored = np.zeros(whole_count + bool(rest_bytes), dtype=np.bool_)
    if whole_count:
        words = np.frombuffer(data, dtype=np.uint64, count=whole_count * _WORDS_PER_BLOCK)
        stored[:whole_count] = _nonzero_rows(words.reshape(whole_count, _WORDS_PER_BLOCK))
    if rest_bytes:
        tail = np.frombuffer(data, dtype=np.uint8, offset=len(data) - rest_bytes)
        stored[-1] = bool(tail.any())
    return stored


def block_masks(stored: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint16]:
    """Pack the bools of `stored_blocks` into one mask per cluster; the last may be partial."""
    cluster_count = -(-len(stored) // layout.BLOCKS_PER_VMA_CLUSTER)
    padded = np.zeros(cluster_count * layout.BLOCKS_PER_VMA_CLUSTER, dtype=np.bool_)
    padded[: len(stored)] = stored
    bits = padded.reshape(cluster_count, layout.BLOCKS_PER_VMA_CLUSTER)
    packed: npt.NDArray[np.uint16] = np.packbits(bits, axis=1, bitorder="little").view("<u2")[:, 0]
    return packed


def _nonzero_rows(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = words[:, _PROBED_WORDS[0]] != 0
    for column in _PROBED_WORDS[1:]:
        doubtful = np.flatnonzero(~found)
        if not len(doubtful):
            return found
        found[doubtful] = words[doubtful, column] != 0
    doubtful = np.flatnonzero(~found)
    if len(doubtful) <= _FEW_BLOCKS:
        found[doubtful] = np.bitwise_or.reduce(words[doubtful], axis=1) != 0
        return found
    breaks = np.flatnonzero(doubtful[1:] - doubtful[:-1] != 1) + 1
    # Whole stretches of rows are looked at in place; picking rows by number would copy them.
    begins = doubtful[np.concatenate(([0], breaks))].tolist()
    ends = (doubtful[np.concatenate((breaks - 1, [len(doubtful) - 1]))] + 1).tolist()
    for begin, end in zip(begins, ends, strict=True):
        found[begin:end] = np.bitwise_or.reduce(words[begin:end], axis=1) != 0
    return found
