"""What a backup server holds when everything is quiet: a value and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vzsim.fakeqmp.disks import DiskContent


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRest:
    """Backups of one VM by their path at the server.

    Attributes:
        marks: of every final backup; they change with its content.
        disks: what the new ones restore to, by device id.
        damaged: why others of the new ones cannot be restored.
        unfinished: backups that are visible and not final.
    """

    marks: Mapping[str, str] = field(default_factory=dict)
    disks: Mapping[str, Mapping[str, DiskContent]] = field(default_factory=dict)
    damaged: Mapping[str, str] = field(default_factory=dict)
    unfinished: tuple[str, ...] = ()
