"""Extracting a stored backup into a folder: configurations and disks as files.

Owns the folder: nothing bears its final name before everything asked for proved right and is
durable, nothing is written outside it, and a failed extraction removes what it wrote.
Source: VMA format, section 8.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress

from vzdump_qemu.errors import ConfigError, TargetError
from vzdump_qemu.stores.stored_backup import (
    BackupContents,
    BackupProof,
    StoredBackup,
    StoredDisk,
)
from vzdump_qemu.stores.system import sync_directory


def extract_backup(
    backup: StoredBackup, directory: str, *, disks: frozenset[str] | None = None
) -> BackupProof:
    """Extract configurations and disks into a folder that does not exist yet or is empty.

    Disks become sparse files ``disk-NAME.raw``, a RAM state ``vmstate.bin``; until everything
    proved right their names begin with ``tmp-``.

    Args:
        disks: names of the disks to extract, or None for all.

    Raises:
        ConfigError: the folder is in use, or a named disk is not in the backup.
        VmaError, PbsError: the backup is damaged or not whole; what was written is removed.
        TargetError: writing failed; what was written is removed.
    """
    with ExitStack() as undo:
        _make_directory(directory, undo)
        files = _ExtractedFiles(directory, disks, undo)
        proof = backup.restore(files.open_target, on_contents=files.write_configs)
        files.give_names()
        undo.pop_all()
        files.close()
        return proof


class _ExtractedFiles:
    """The files of one extraction; each is registered for removal as soon as it exists."""

    def __init__(self, directory: str, disks: frozenset[str] | None, undo: ExitStack) -> None:
        self._directory = directory
        self._disks = disks
        self._undo = undo
        self._open: list[tuple[StoredDisk, int]] = []
        undo.callback(self.close)

    def write_configs(self, contents: BackupContents) -> None:
        unknown = (self._disks or frozenset()) - {disk.name for disk in contents.disks}
        if unknown:
            raise ConfigError(f"archive contains no device '{min(unknown)}'")
        for config in contents.configs:
            fd = self._create(config.name)
            try:
                with open(fd, "wb") as file:
                    file.write(config.data)
                    file.flush()
                    os.fsync(fd)
            except OSError as error:
                raise TargetError(f"write failed - {error.strerror}") from error

    def open_target(self, disk: StoredDisk) -> int | None:
        if self._disks is not None and disk.name not in self._disks:
            return None
        fd = self._create(_temp_name(disk))
        self._open.append((disk, fd))
        if not disk.is_vmstate:
            try:
                os.ftruncate(fd, disk.size_bytes)
            except OSError as error:
                raise TargetError(
                    f"can't create a file of {disk.size_bytes} bytes - {error.strerror}"
                ) from error
        return fd

    def give_names(self) -> None:
        """Make the content durable, then the names."""
        try:
            for _, fd in self._open:
                os.fsync(fd)
        except OSError as error:
            raise TargetError(f"write failed - {error.strerror}") from error
        for disk, _ in self._open:
            final_path = self._path(disk.file_name)
            try:
                os.rename(self._path(_temp_name(disk)), final_path)
            except OSError as error:
                raise TargetError(f"can't rename to {final_path} - {error.strerror}") from error
            self._undo.callback(_remove, final_path)
        try:
            sync_directory(self._directory)
        except OSError as error:
            raise TargetError(f"can't sync {self._directory} - {error.strerror}") from error

    def close(self) -> None:
        while self._open:
            os.close(self._open.pop()[1])

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def _create(self, name: str) -> int:
        path = self._path(name)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TargetError(f"can't create {path} - {error.strerror}") from error
        self._undo.callback(_remove, path)
        return fd


def _make_directory(directory: str, undo: ExitStack) -> None:
    try:
        os.mkdir(directory)
    except FileExistsError:
        try:
            in_use = bool(os.listdir(directory))
        except OSError as error:
            raise TargetError(f"can't use {directory} - {error.strerror}") from error
        if in_use:
            raise ConfigError(f"target directory {directory} is not empty") from None
    except OSError as error:
        raise TargetError(f"can't create {directory} - {error.strerror}") from error
    else:
        undo.callback(os.rmdir, directory)


def _temp_name(disk: StoredDisk) -> str:
    return f"tmp-{disk.file_name}"


def _remove(path: str) -> None:
    # Where it is gone it was renamed meanwhile; its new name has an entry of its own.
    with suppress(FileNotFoundError):
        os.unlink(path)
