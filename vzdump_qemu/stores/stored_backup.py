"""What every stored backup can be asked, whatever holds it: an archive file or a backup server.

Owns the values and the `StoredBackup` interface that the verbs work on; the kinds are in
`archive_file` and `pbs.server_backup`. Source: architecture, section 8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.formats.vma import ConfigBlob


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDisk:
    """One disk of a backup.

    Attributes:
        name: the disk's device id, or that of a RAM state, which archives may hold.
        size_bytes: size of the disk; only informative for a RAM state.
        file_name: under which the content is extracted.
    """

    name: str
    size_bytes: int
    file_name: str
    is_vmstate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredConfig:
    """A configuration file of a backup, by name; the size is that of what is stored."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupContents:
    """What a backup holds beside the bytes of its disks.

    Attributes:
        configs: under the names that the kind of backup gives them.
        firewall_name: which of them holds the firewall's rules, if any does.
    """

    configs: Sequence[ConfigBlob]
    disks: Sequence[StoredDisk]
    firewall_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupSummary:
    """What a backup says of itself; its data was not looked at.

    Attributes:
        facts: what this kind of backup alone can tell, in the order to show it.
    """

    facts: Mapping[str, str]
    configs: Sequence[StoredConfig]
    disks: Sequence[StoredDisk]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvedDisk:
    """A disk whose content was proved right.

    Attributes:
        figures: what was counted, by name and in the order to show it.
    """

    disk: StoredDisk
    figures: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupProof:
    """What was shown to be whole.

    Attributes:
        figures: totals that this kind of backup alone can tell.
    """

    summary: BackupSummary
    disks: Sequence[ProvedDisk]
    figures: Mapping[str, int] = field(default_factory=dict)


# Gives a descriptor open for writing, which stays the caller's, or None to skip the disk.
OpenTarget: TypeAlias = Callable[[StoredDisk], int | None]


class StoredBackup(Protocol):
    """A finished backup, open for reading.

    Every method raises VmaError or PbsError with its kinds for what is not as it should be.
    """

    @property
    def name(self) -> str:
        """As it was named by whoever asks."""
        ...

    def summarize(self) -> BackupSummary:
        """What the backup says of itself."""
        ...

    def read_config(self, name: str) -> bytes:
        """Content of one configuration file. Raises ConfigError if there is none of that name."""
        ...

    def verify(self) -> BackupProof:
        """Read everything and check what can be checked."""
        ...

    def restore(
        self, open_target: OpenTarget, *, on_contents: Callable[[BackupContents], None]
    ) -> BackupProof:
        """Write disks to targets that the caller opens, and prove every byte on the way.

        Zeroes are not written: a target must read as zeroes beforehand. What was written is
        worth something only if this returns; nothing is written after it returned or raised.

        Args:
            open_target: asked once per disk, in the backup's order.
            on_contents: called before that, e.g. to look at the configuration.
        Raises:
            TargetError: a target cannot be written.
        """
        ...


def find_config(configs: Sequence[ConfigBlob], name: str) -> bytes:
    """Content of the file of that name. Raises ConfigError, which names the others."""
    for config in configs:
        if config.name == name:
            return config.data
    raise no_such_config(name, [config.name for config in configs])


def no_such_config(name: str, names: Sequence[str]) -> ConfigError:
    """The error for a configuration file that is not in the backup."""
    return ConfigError(
        f"archive contains no file '{name}'", hint=f"it has {', '.join(names) or 'none'}"
    )
