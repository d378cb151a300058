"""Listing, verifying and restoring archives.

Owns the reading around `formats.vma`; opening and decompressing is `archive_source`'s, the files
of an extraction are `extraction`'s. Source: VMA format, sections 6 to 8.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from vzdump_qemu.errors import TargetError, VmaError
from vzdump_qemu.formats.vma import (
    DataRead,
    DeviceTally,
    HeaderRead,
    VmaDevice,
    VmaEvent,
    VmaHeader,
    VmaReader,
)
from vzdump_qemu.formats.vma.reader import NO_HEADER_HINT
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
    raise VmaError("can't read vma header - got EOF", hint=NO_HEADER_HINT)


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
        raise VmaError("can't read vma header - got EOF", hint=NO_HEADER_HINT)
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
