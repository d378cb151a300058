"""The ports to a backup server that the engine needs, with the values that cross them.

Owns what a run must know of a server, the order in which a backup there is made, and what is done
with backups once they are; how the server is spoken to is left to `stores.pbs`. Source: host
behaviour, 1.10 and 5.8; PBS formats, sections 4 and 11.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from vzdump_qemu.disk_ports import DiskOrigin
from vzdump_qemu.errors import BackupError
from vzdump_qemu.formats.pbs import BackupGroup, BackupRef
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.ports import DiskTransfer

ReadLog: TypeAlias = Callable[[str], bytes | None]
"""The log file of a run that was closed, by its path; None if it was not written whole.

Raises TargetError for one that cannot be read.
"""


def no_log(_log_path: str) -> bytes | None:
    """`ReadLog` where nobody writes logs."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSize:
    """A disk that is to be in a backup."""

    device_id: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousAtServer:
    """The group's last backup, as far as one can build upon it.

    Attributes:
        backup_id: names its content and no other's; empty if there is none to build upon.
        refusal: why not, for the operator.
    """

    backup_id: str = ""
    refusal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexReuse:
    """Whether what a disk did not change may be taken over from the previous backup.

    Attributes:
        refusal: why not; empty if it may.
    """

    device_id: str
    refusal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PbsFinished:
    """A backup that the server has made final.

    Attributes:
        backup_id: names its content, as `PreviousAtServer.backup_id` will.
        size_bytes: of all disks and configurations, as they restore.
        sent_bytes: what went over the wire for it.
        warnings: for the operator.
    """

    backup_id: str
    size_bytes: int
    sent_bytes: int
    warnings: tuple[str, ...] = ()


class PbsUpload(Protocol):
    """One backup in the making on a server that keeps nothing of it until `finish`."""

    @property
    def previous(self) -> PreviousAtServer: ...

    async def begin_indexes(
        self, disks: Sequence[DiskSize], configs: Sequence[tuple[str, bytes]]
    ) -> Sequence[IndexReuse]:
        """Begin the index of every disk and send the configurations.

        Args:
            configs: file name at the server without its suffix (``qemu-server.conf``,
                ``fw.conf``) and content.
        Raises:
            PbsRefused, PbsUnreachable, PbsError: there will be no backup.
        """
        ...

    async def begin(
        self, origins: Sequence[DiskOrigin], *, rate_limit_bytes_per_s: int
    ) -> DiskTransfer:
        """Connect to every disk, then begin to move them.

        The bitmap of an origin whose index was not begun upon the previous one is left aside.

        Args:
            origins: of the disks of `begin_indexes`, in that order; none for a VM without disks.
            rate_limit_bytes_per_s: of reading, over all disks; 0 means unlimited.
        Raises:
            DiskReadError: a disk could not be opened; nothing was sent.
        """
        ...

    def failure(self) -> BackupError | None:
        """The first thing that went wrong at the server's side so far, without waiting."""
        ...

    async def finish(self) -> PbsFinished:
        """Send the manifest and make the backup final; only after its transfer finished.

        Raises:
            PbsRefused, PbsUnreachable, PbsError: there is no backup.
        Cancelled: there may be a backup or not.
        """
        ...

    async def abort(self) -> None:
        """End the connection: the server forgets the backup unless it is final. Idempotent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PbsStored:
    """A backup as its server lists it.

    Attributes:
        is_finished: whether it is final; what is not is being made, or was given up.
        is_damaged: the server's last verification failed.
        size_bytes: of all files as the server counts them; 0 while it is not final.
    """

    backup: BackupRef
    is_finished: bool = True
    is_protected: bool = False
    is_damaged: bool = False
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PbsPruned:
    """What the server's rule does with one backup."""

    backup: BackupRef
    is_kept: bool


class PbsManagement(Protocol):
    """Backups at one server, in one datastore and namespace, once they are made.

    Every method raises PbsRefused in the server's words, PbsUnreachable: what was asked may have
    been done, or PbsError.
    """

    async def list_backups(self, group: BackupGroup | None = None) -> Sequence[PbsStored]:
        """All backups of VMs, or those of a group, unfinished ones too; each group oldest first."""
        ...

    async def write_notes(self, backup: BackupRef, notes: str) -> None:
        """Replace the notes of a backup."""
        ...

    async def protect(self, backup: BackupRef) -> None:
        """Keep a backup from being pruned or removed."""
        ...

    async def prune(
        self, group: BackupGroup, counts: Mapping[str, int], *, is_dry_run: bool = False
    ) -> Sequence[PbsPruned]:
        """Have the server remove what no count keeps; it counts periods in its own zone.

        Args:
            counts: of 1 or more, by ``keep-last`` to ``keep-yearly``; at least one.
            is_dry_run: only tell.
        """
        ...

    async def remove(self, backup: BackupRef) -> None:
        """Remove one backup; a protected one is refused."""
        ...

    async def upload_log(self, backup: BackupRef, log: bytes) -> None:
        """Store the run's log with a backup, encrypted where backups are; once for each.

        Also raises PbsKeyError.
        """
        ...


class PbsUploads(Protocol):
    """Backups on servers."""

    def manage(self, target: PbsTarget) -> PbsManagement:
        """What is done with backups there once they are made; nothing is asked yet."""
        ...

    async def check(self, target: PbsTarget) -> None:
        """Show that the server is the one that is trusted, knows us, and that the key is there.

        Before a guest is touched. Raises PbsError with its kinds.
        """
        ...

    async def last_time_s(self, target: PbsTarget, group: BackupGroup) -> int:
        """When the group's last backup was made, in seconds since the epoch; 0 for none.

        Raises PbsError with its kinds.
        """
        ...

    async def connect(self, target: PbsTarget, backup: BackupRef) -> PbsUpload:
        """Begin a backup and look at the previous one. Raises PbsError with its kinds.

        Cancelled: the server forgets the backup.
        """
        ...

    async def prove(
        self,
        target: PbsTarget,
        backup: BackupRef,
        disks: Sequence[DiskSize],
        config_names: Sequence[str],
    ) -> PbsFinished:
        """Show that a backup that another program sent is final and holds all of this.

        Args:
            config_names: as in `PbsUpload.begin_indexes`.
        Raises:
            PbsCorrupt: something is missing, or not as it should be.
            PbsKeyError: it was made with another key.
            PbsRefused, PbsUnreachable, PbsError: nothing can be told.
        """
        ...
