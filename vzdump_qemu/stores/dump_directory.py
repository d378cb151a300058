"""The archives of VMs in one directory, and their removal.

Owns listing them, whether one can be restored from, and removing one with its side files. Which
ones go is `plan.retention`'s; names are `plan.names`'s. Source: host behaviour, section 2.8. Only
a file with a standard name is ever removed, and what cannot be told counts as protected.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass

from vzdump_qemu.errors import ConfigError, TargetError, VmaError
from vzdump_qemu.plan.names import (
    is_archive_name,
    notes_name,
    parse_standard_name,
    protection_name,
    side_log_name,
)
from vzdump_qemu.stores.system import sync_directory

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

    def has_header(self, name: str) -> bool:
        """Whether the beginning of an archive can be read; costs a few KiB."""
        # Loaded for those that ask: every backup removes old ones, few look into them.
        from vzdump_qemu.stores.archive_reading import list_archive

        try:
            list_archive(self.path_of(name))
        except VmaError:
            return False
        return True

    def is_whole(self, name: str) -> bool:
        """Whether an archive is whole to its last byte; reads all of it."""
        from vzdump_qemu.stores.archive_reading import verify_archive

        try:
            verify_archive(self.path_of(name))
        except VmaError:
            return False
        return True

    def remove(self, name: str) -> tuple[str, ...]:
        """Remove an archive, then its log and notes, durably; a missing one is no error.

        Returns:
            A warning for each side file that stayed.
        Raises:
            TargetError: the name is not a standard one, the archive is protected or its
                protection cannot be told, or it could not be removed.
        """
        standard = parse_standard_name(name)
        path = self.path_of(name)
        if standard is None or standard.guest_type != _GUEST_TYPE:
            raise TargetError(f"'{path}' is not named as an archive of a VM and is not removed")
        if self._exists(protection_name(path)):
            raise TargetError(f"cannot remove protected archive '{path}'")
        warnings = []
        try:
            with suppress(FileNotFoundError):
                os.unlink(path)
            for side_path in (self.path_of(side_log_name(name)), notes_name(path)):
                warnings += _remove_beside(side_path)
            # Whoever is told that it is gone counts on the space, also after a power loss.
            sync_directory(self._path)
        except OSError as error:
            raise TargetError(f"unable to remove '{path}' - {error.strerror}") from error
        return tuple(warnings)

    def _exists(self, path: str) -> bool:
        try:
            os.lstat(path)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise TargetError(f"unable to look for '{path}' - {error.strerror}") from error
        return True


def _remove_beside(path: str) -> list[str]:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"unable to remove '{path}' - {error.strerror}"]
    return []
