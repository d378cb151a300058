"""The archives of VMs in one directory.

Owns listing them and whether one can be restored from. Which ones go is `plan.retention`'s, their
removal `engine.removal`'s; names are `plan.names`'s. Source: host behaviour, section 2.8.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass

from vzdump_qemu.errors import ConfigError, TargetError, VmaError
from vzdump_qemu.plan.names import is_archive_name, protection_name, side_log_name

_GUEST_TYPE = "qemu"


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpedArchive:
    """One file that is named as an archive of a VM."""

    name: str
    size_bytes: int
    is_protected: bool


class DumpDirectory:
    """One directory of archives; every call blocks as long as its file system does.

    Args:
        path: of the directory, as messages name it.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def path_of(self, name: str) -> str:
        """The path of an archive."""
        return os.path.join(self._path, name)

    def list_archives(self) -> tuple[DumpedArchive, ...]:
        """Every archive of a VM, renamed ones included, by name.

        Raises:
            ConfigError: there is no such directory.
            TargetError: it cannot be read.
        """
        found = []
        try:
            names = set(os.listdir(self._path))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigError(
                f"dumpdir '{self._path}' does not exist", hint="name a directory that holds backups"
            ) from error
        except OSError as error:
            raise TargetError(f"unable to list '{self._path}' - {error.strerror}") from error
        for name in sorted(names):
            if not (is_archive_name(name) and name.startswith(f"vzdump-{_GUEST_TYPE}-")):
                continue
            # One that went meanwhile, or a directory, is no archive.
            with suppress(OSError):
                facts = os.stat(self.path_of(name))
                if stat.S_ISREG(facts.st_mode):
                    found.append(
                        DumpedArchive(
                            name=name,
                            size_bytes=facts.st_size,
                            is_protected=protection_name(name) in names,
                        )
                    )
        return tuple(found)

    def looks_whole(self, name: str) -> bool:
        """Whether an archive's beginning can be read, and its end and log do not speak against it.

        Costs a few MiB at most.
        """
        # Loaded for those that ask: every backup removes old ones, few look into them.
        from vzdump_qemu.stores.archive_glance import looks_whole

        return looks_whole(self.path_of(name), self.path_of(side_log_name(name)))

    def is_whole(self, name: str) -> bool:
        """Whether an archive is whole to its last byte; reads all of it."""
        from vzdump_qemu.stores.archive_reading import verify_archive

        try:
            verify_archive(self.path_of(name))
        except VmaError:
            return False
        return True
