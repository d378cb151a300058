"""The backup itself: where it goes, what is attached for it, how it proceeds and ends."""

from __future__ import annotations

from dataclasses import dataclass

from vzdump_qemu.events.base import Event
from vzdump_qemu.events.figures import BitmapAction, ProgressLine, TransferSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveToStdout(Event):
    """The stream goes to standard output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveCreating(Event):
    """The final name the archive is to get."""

    archive_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PbsBackupCreating(Event):
    """The path that the backup is to get at its server.

    Attributes:
        storage_id: of the node's storage; empty where a server was named.
    """

    backup_path: str
    storage_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptionEnabled(Event):
    """The backup will be encrypted; `has_master_key` if its key goes with it, wrapped."""

    has_master_key: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPathChosen(Event):
    """Which way the bytes travel.

    Attributes:
        name: as ``--data-path`` takes it.
        reason: why this one; empty where the operator asked for it.
    """

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoDisksFound(Event):
    """Nothing but the configuration will be stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DisklessStarted(Event):
    """The configuration-only archive is being made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateStarted(Event):
    """A template is packed by an external program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandStarted(Event):
    """An external program, shell-quoted."""

    command_line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSeen(Event):
    """One line an external program printed."""

    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmAttaching(Event):
    """The TPM state volume is attached for reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleecingAttaching(Event):
    """A fleecing image is attached."""

    device_id: str
    volid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IncrementPlanned(Event):
    """Whether what did not change since an earlier backup is left unread.

    Attributes:
        changed_bytes: what is looked at; all of `size_bytes` if there is a `reason` for that.
        reason: why nothing is left unread; empty otherwise.
    """

    device_id: str
    size_bytes: int
    changed_bytes: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FleecingRemoving(Event):
    """A fleecing image is deleted; `old` if an earlier run left it."""

    volid: str
    old: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FleecingSizeUnknown(Event):
    """QEMU did not tell the disk's size; the storage's is used."""

    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStartIssued(Event):
    """The command that fixes the point in time goes out now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobAccepted(Event):
    """QEMU started the backup job."""

    uuid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BitmapUsed(Event):
    """What QEMU's own record of changes of a disk is good for.

    Attributes:
        dirty_bytes: what is looked at, of `size_bytes`.
    """

    device_id: str
    action: BitmapAction
    size_bytes: int
    dirty_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FastIncrementBegun(Event):
    """Less than everything is looked at."""

    dirty_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressMade(Event):
    """A progress line is due."""

    line: ProgressLine


@dataclass(frozen=True, slots=True, kw_only=True)
class PbsBackupPublished(Event):
    """The server has made the backup final.

    Attributes:
        size_bytes: as it restores.
        sent_bytes: what went over the wire for it.
    """

    backup_path: str
    size_bytes: int
    sent_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFinishing(Event):
    """All data is sent; the server validates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferEnded(Event):
    """Totals of the job."""

    summary: TransferSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class JobAborting(Event):
    """The run failed while QEMU had work of ours."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveProved(Event):
    """Every cluster of every device was seen once, all sums right."""

    stream_bytes: int
    vma_cluster_count: int
    stored_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivePublished(Event):
    """The archive has its final name."""

    archive_path: str
    size_bytes: int
