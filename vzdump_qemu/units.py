"""Units and their renderings: bytes, rates, durations, aligned counts.

Pure arithmetic; texts follow the vzdump task log (host behaviour, sections 1.7, 1.10 and 3.5).
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

SECTOR_BYTES = 512
NS_PER_S = 1_000_000_000

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def ceil_div(amount: int, divisor: int) -> int:
    """Divide and round up; both non-negative, divisor positive."""
    return -(-amount // divisor)


def round_up(amount: int, multiple: int) -> int:
    """Round up to the next multiple."""
    return ceil_div(amount, multiple) * multiple


def render_bytes(amount: float, decimals: int = 1) -> str:
    """Render like ``2.3 GiB``: powers of 1024, B to PiB (progress lines of the task log)."""
    value = float(amount)
    index = 0
    while value >= KIB and index < len(_UNITS) - 1:
        value /= KIB
        index += 1
    if index == 0:
        return f"{int(value)} B"
    return f"{value:.{decimals}f} {_UNITS[index]}"


def render_duration(seconds: float) -> str:
    """Render like ``1h 2m 3s``; ``0s`` for anything under a second."""
    rest = int(seconds)
    parts = []
    for length, letter in ((86400, "d"), (3600, "h"), (60, "m"), (1, "s")):
        count, rest = divmod(rest, length)
        if count:
            parts.append(f"{count}{letter}")
    return " ".join(parts) or "0s"


def render_config_size(size_bytes: int) -> str:
    """Render as VM configurations do: largest unit that divides exactly, else a plain number."""
    for unit, letter in ((TIB, "T"), (GIB, "G"), (MIB, "M"), (KIB, "K")):
        if size_bytes and size_bytes % unit == 0:
            return f"{size_bytes // unit}{letter}"
    return str(size_bytes)


def render_archive_size(size_bytes: int) -> str:
    """Render as vzdump's ``archive file size``: KB and MB truncated, GB and TB two decimals."""
    if size_bytes < MIB:
        return f"{size_bytes // KIB}KB"
    if size_bytes < GIB:
        return f"{size_bytes // MIB}MB"
    if size_bytes < TIB:
        return f"{size_bytes / GIB:.2f}GB"
    return f"{size_bytes / TIB:.2f}TB"
