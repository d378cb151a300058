"""Values that events carry, and that the engine decides by: modes, reasons, amounts."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class BackupMode(enum.Enum):
    """Backup modes as the operator knows them."""

    SNAPSHOT = "snapshot"
    SUSPEND = "suspend"
    STOP = "stop"


class Consistency(enum.Enum):
    """Consistency reached: what we report, not what was asked."""

    FROZEN = "frozen"
    CRASH = "crash"
    STOPPED = "stopped"


class FreezeSkip(enum.Enum):
    """Why no freeze was asked."""

    DISABLED = "disabled in VM options"
    NOT_RUNNING = "agent configured but not running?"
    ALREADY_FROZEN = "already frozen"


class BitmapAction(enum.Enum):
    """What QEMU did with the dirty bitmap of a disk for a backup server."""

    NOT_USED = "not-used"
    NOT_USED_REMOVED = "not-used-removed"
    NEW = "new"
    USED = "used"
    INVALID = "invalid"
    MISSING_RECREATED = "missing-recreated"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressLine:
    """Figures of one progress line.

    Attributes:
        percent: of `target_bytes`, floor; 100 if the target is 0.
        target_bytes: what this run has to look at (dirty amount or total).
        read_bytes_per_s, write_bytes_per_s: since the last line, never negative.
    """

    percent: int
    done_bytes: int
    target_bytes: int
    zero_bytes: int
    elapsed_s: float
    read_bytes_per_s: float
    write_bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSummary:
    """Totals of an ended job."""

    total_bytes: int
    transferred_bytes: int
    zero_bytes: int
    reused_bytes: int
    duration_s: float
