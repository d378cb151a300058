"""Listing, verifying, extracting and restoring archives.

Owns files and folders around `formats.vma`; opening and decompressing is `archive_source`'s.
Nothing bears its final name before the whole archive proved right, nothing is written outside the
folder of an extraction, and a failed extraction removes what it wrote.
Source: VMA format, sections 6 to 8.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias

from vzdump_qemu.errors import ConfigError, TargetError, VmaError
from vzdump_qemu.formats.vma import (
    DataRead,
    DeviceTally,
    HeaderRead,
    VmaDevice,
    VmaEvent,
    VmaHeader,
    VmaReader,
)
from vzdump_qemu.stores.archive_source import Compression, VmaSource, open_vma_source

# Called with the number of bytes of the plain stream read so far.
OnProgress: TypeAlias = Callable[[int], None]
# Gives a descriptor open for writing, which stays the caller's, or None to skip the disk.
OpenTarget: TypeAlias = Callable[[VmaDevice], int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveSummary:
    """What the header of an archive says; its data was not looked at."""

    header: VmaHeader
    compression: Compression


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What a whole archive holds; every cluster was there exactly once.

    Attributes:
        stream_bytes: length of the plain stream.
        tallies: one row per device.
    """

    header: VmaHeader
    compression: Compression
    stream_bytes: int
    extent_count: int
    tallies: tuple[DeviceTally, ...]


def list_archive(path: str) -> ArchiveSummary:
    """Read the header of an archive (``-``: standard input).

    Raises:
        VmaError: no archive, or one whose header is wrong.
    """
    reader = VmaReader()
    with open_vma_source(path) as source:
        for event in _events(source, reader, None):
            if isinstance(event, HeaderRead):
                return ArchiveSummary(header=event.header, compression=source.compression)
    raise VmaError("can't read vma header - got EOF")


def verify_archive(path: str, on_progress: OnProgress | None = None) -> VerifyReport:
    """Read an archive to its end and check everything that can be checked.

    Raises:
        VmaError: it is damaged or not whole.
    """
    reader = VmaReader()
    with open_vma_source(path) as source:
        for _ in _events(source, reader, on_progress):
            pass
        return _report(source, reader)


def restore_archive(
    path: str,
    open_target: OpenTarget,
    *,
    on_header: Callable[[VmaHeader], None] | None = None,
    on_progress: OnProgress | None = None,
) -> VerifyReport:
    """Write the disks of an archive to targets that the caller opens.

    Zero blocks are not written: a target must read as zeroes beforehand. What was written is
    worth something only if this returns.

    Args:
        open_target: asked once per device, in the order of the device table.
        on_header: called before that, e.g. to look at the configuration.

    Raises:
        VmaError: the archive is damaged or not whole.
        TargetError: a target cannot be written.
    """
    reader = VmaReader()
    targets: dict[int, int] = {}
    with open_vma_source(path) as source:
        for event in _events(source, reader, on_progress):
            if isinstance(event, DataRead):
                fd = targets.get(event.vma_dev_id)
                if fd is not None:
                    _write_at(fd, event.disk_offset_bytes, event.data)
            elif isinstance(event, HeaderRead):
                if on_header is not None:
                    on_header(event.header)
                for device in event.header.devices:
                    fd = open_target(device)
                    if fd is not None:
                        targets[device.vma_dev_id] = fd
        return _report(source, reader)


def extract_archive(
    path: str,
    directory: str,
    *,
    disks: frozenset[str] | None = None,
    on_progress: OnProgress | None = None,
) -> VerifyReport:
    """Extract configurations and disks into a folder that does not exist yet or is empty.

    Disks become sparse files ``disk-NAME.raw``, a RAM state ``vmstate.bin``; until the whole
    archive proved right their names begin with ``tmp-``.

    Args:
        disks: names of the devices to extract, or None for all; the archive is checked as a
            whole in any case.

    Raises:
        ConfigError: the folder is in use, or a named device is not in the archive.
        VmaError: the archive is damaged or not whole; what was written is removed.
        TargetError: writing failed; what was written is removed.
    """
    with ExitStack() as undo:
        _make_directory(directory, undo)
        files = _ExtractedFiles(directory, disks, undo)
        report = restore_archive(
            path, files.open_target, on_header=files.write_configs, on_progress=on_progress
        )
        files.give_names()
        undo.pop_all()
        files.close()
        return report


class _ExtractedFiles:
    """The files of one extraction; each is registered for removal as soon as it exists."""

    def __init__(self, directory: str, disks: frozenset[str] | None, undo: ExitStack) -> None:
        self._directory = directory
        self._disks = disks
        self._undo = undo
        self._open: list[tuple[VmaDevice, int]] = []
        undo.callback(self.close)

    def write_configs(self, header: VmaHeader) -> None:
        unknown = (self._disks or frozenset()) - {device.name for device in header.devices}
        if unknown:
            raise ConfigError(f"archive contains no device '{min(unknown)}'")
        for config in header.configs:
            fd = self._create(config.name)
            try:
                _write_at(fd, 0, memoryview(config.data))
            finally:
                os.close(fd)

    def open_target(self, device: VmaDevice) -> int | None:
        if self._disks is not None and device.name not in self._disks:
            return None
        fd = self._create(device.temp_file_name)
        self._open.append((device, fd))
        if not device.is_vmstate:
            try:
                os.ftruncate(fd, device.size_bytes)
            except OSError as error:
                raise TargetError(
                    f"can't create a file of {device.size_bytes} bytes - {error.strerror}"
                ) from error
        return fd

    def give_names(self) -> None:
        for device, _ in self._open:
            final_path = self._path(device.file_name)
            try:
                os.rename(self._path(device.temp_file_name), final_path)
            except OSError as error:
                raise TargetError(f"can't rename to {final_path} - {error.strerror}") from error
            self._undo.callback(_remove, final_path)

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


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        # Renamed meanwhile; its new name has an entry of its own.
        pass


def _events(
    source: VmaSource, reader: VmaReader, on_progress: OnProgress | None
) -> Iterator[VmaEvent]:
    """All events of a source, to its end."""
    read_bytes = 0
    for chunk in source.chunks():
        reader.feed(chunk)
        while (event := reader.next_event()) is not None:
            yield event
        read_bytes += len(chunk)
        if on_progress is not None:
            on_progress(read_bytes)
    reader.finish()


def _report(source: VmaSource, reader: VmaReader) -> VerifyReport:
    header = reader.check.header
    if header is None:
        raise VmaError("can't read vma header - got EOF")
    return VerifyReport(
        header=header,
        compression=source.compression,
        stream_bytes=reader.check.stream_bytes,
        extent_count=reader.check.extent_count,
        tallies=reader.check.tallies(),
    )


def _write_at(fd: int, offset_bytes: int, data: memoryview) -> None:
    while len(data):
        try:
            count = os.pwrite(fd, data, offset_bytes)
        except OSError as error:
            raise TargetError(f"write failed - {error.strerror}") from error
        data = data[count:]
        offset_bytes += count
