"""What happens to backups once the new one is made: notes, protection, removal of older ones."""

from __future__ import annotations

from dataclasses import dataclass

from vzdump_qemu.events.base import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class NotesAdding(Event):
    """The notes of the new backup are about to be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupProtecting(Event):
    """The new backup is about to be marked as protected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneStarted(Event):
    """Older backups of the VM are judged; `rule_text` names the keep options that are set."""

    rule_text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupRemoving(Event):
    """An older backup is about to be removed; `storage_id` is empty for a plain directory."""

    storage_id: str
    name: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupRemovalFailed(Event):
    """An older backup is still there; `name` is as its removal named it."""

    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPruning(Event):
    """A backup server is about to be asked to remove what the rule does not keep."""

    group: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPruneFailed(Event):
    """The server did not do so, or it is not known; all older backups may still be there."""

    group: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneEnded(Event):
    """Everything that had to go was tried."""

    removed_count: int
