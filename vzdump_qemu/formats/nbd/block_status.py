"""Block status replies: what a disk holds where, from allocation and dirty bitmap together.

Pure; numpy, as a reply may tell of a hundred thousand extents. Source: the public NBD protocol
description, metadata contexts ``base:allocation`` and ``qemu:dirty-bitmap:NAME``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from vzdump_qemu.disk_ports import Extent, ExtentKind
from vzdump_qemu.errors import DiskReadError
from vzdump_qemu.formats.nbd import layout

_ENTRY_BYTES: Final = 8
_DATA, _ZERO, _UNCHANGED = 0, 1, 2
_KINDS: Final = {
    _DATA: ExtentKind.DATA,
    _ZERO: ExtentKind.ZERO,
    _UNCHANGED: ExtentKind.UNCHANGED,
}


@dataclass(frozen=True, slots=True)
class StatusRuns:
    """One context's answer: where each run ends, relative to the request, and its flags."""

    ends: npt.NDArray[np.int64]
    flags: npt.NDArray[np.int64]


def check_status_length(length_bytes: int) -> None:
    """Raise DiskReadError if a block status chunk announces what cannot be one."""
    entries_bytes = length_bytes - layout.NUMBER_STRUCT.size
    if entries_bytes <= 0 or entries_bytes % _ENTRY_BYTES or length_bytes > layout.STATUS_BYTES_MAX:
        raise DiskReadError(f"NBD server announced a block status of {length_bytes} bytes")


def decode_status(payload: bytes | bytearray) -> tuple[int, StatusRuns]:
    """Decode one block status chunk into its context's number and its runs.

    Raises:
        DiskReadError: a run is empty.
    """
    context_id = layout.NUMBER_STRUCT.unpack_from(payload)[0]
    entries = np.frombuffer(payload, dtype=">u4", offset=layout.NUMBER_STRUCT.size)
    lengths, flags = entries.reshape(-1, 2).astype(np.int64).T
    if not lengths.all():
        raise DiskReadError("NBD server sent an empty extent")
    return context_id, StatusRuns(ends=np.cumsum(lengths), flags=flags)


def merge_status(
    offset_bytes: int,
    length_bytes: int,
    found: Mapping[int, StatusRuns],
    *,
    allocation_context_id: int | None,
    bitmap_context_id: int | None,
) -> Sequence[Extent]:
    """Extents of the part that all contexts told of, equal neighbours joined.

    What the bitmap calls clean is UNCHANGED, zero or not.

    Args:
        found: by number of the context.
    Raises:
        DiskReadError: a context that was negotiated is missing.
    """
    contexts = [one for one in (allocation_context_id, bitmap_context_id) if one is not None]
    if not contexts or any(one not in found for one in contexts):
        raise DiskReadError("NBD server left a context out of its block status")
    # The last extent may reach beyond what was asked for.
    told_bytes = min(length_bytes, *(int(found[one].ends[-1]) for one in contexts))
    ends = np.unique(np.concatenate([found[one].ends for one in contexts]))
    ends = np.append(ends[ends < told_bytes], told_bytes)
    kinds = np.full(len(ends), _DATA, dtype=np.int64)
    if allocation_context_id is not None:
        flags = _flags_at(found[allocation_context_id], ends)
        kinds[flags & layout.ALLOCATION_ZERO != 0] = _ZERO
    if bitmap_context_id is not None:
        flags = _flags_at(found[bitmap_context_id], ends)
        kinds[flags & layout.BITMAP_DIRTY == 0] = _UNCHANGED
    is_last = np.append(kinds[1:] != kinds[:-1], True)
    extents = []
    begin = 0
    for end, kind in zip(ends[is_last].tolist(), kinds[is_last].tolist(), strict=True):
        extents.append(Extent(offset_bytes + begin, end - begin, _KINDS[kind]))
        begin = end
    return extents


def _flags_at(runs: StatusRuns, ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Flags of the run in which each of the finer runs lies."""
    flags: npt.NDArray[np.int64] = runs.flags[np.searchsorted(runs.ends, ends, side="left")]
    return flags
