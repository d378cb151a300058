"""Disk content for labs: pseudo-random, the same for the same seed, with holes.

Owns the pattern: about half of each disk holds data, in whole and in partly filled VMA clusters,
so that a backup meets full, sparse and empty ones. Loads numpy.
"""

from __future__ import annotations

import os

import numpy as np

from vzdump_qemu.errors import StorageError
from vzdump_qemu.units import KIB

_CLUSTER_BYTES = 64 * KIB
_BLOCK_BYTES = 4 * KIB
_BLOCKS_PER_CLUSTER = _CLUSTER_BYTES // _BLOCK_BYTES
_FULL_SHARE = 0.4
_MIXED_SHARE = 0.2
_KEY_BITS_MASK = (1 << 64) - 1


def fill_raw_file(path: str, *, seed: int, stream_index: int) -> int:
    """Write the pattern over a raw image; return how many bytes were written.

    Args:
        stream_index: tells disks of one seed apart.
    Raises: StorageError.
    """
    key = np.array([seed & _KEY_BITS_MASK, stream_index & _KEY_BITS_MASK], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key))
    written_bytes = 0
    try:
        with open(path, "r+b", buffering=0) as file:
            size_bytes = file.seek(0, os.SEEK_END)
            for offset_bytes in range(0, size_bytes, _CLUSTER_BYTES):
                length_bytes = min(_CLUSTER_BYTES, size_bytes - offset_bytes)
                for start_bytes, data in _cluster_content(generator):
                    part = data[: max(length_bytes - start_bytes, 0)]
                    written_bytes += os.pwrite(file.fileno(), part, offset_bytes + start_bytes)
    except OSError as error:
        raise StorageError(f"unable to fill '{path}' - {error.strerror}") from error
    return written_bytes


def _cluster_content(generator: np.random.Generator) -> list[tuple[int, bytes]]:
    """Offsets within one cluster, and what stands there; always draws whole clusters."""
    kind = generator.random()
    if kind < _FULL_SHARE:
        return [(0, generator.bytes(_CLUSTER_BYTES))]
    if kind >= _FULL_SHARE + _MIXED_SHARE:
        return []
    kept = generator.random(_BLOCKS_PER_CLUSTER) < 0.5
    return [
        (int(index) * _BLOCK_BYTES, generator.bytes(_BLOCK_BYTES)) for index in np.flatnonzero(kept)
    ]
