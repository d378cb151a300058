"""Edits of a VM configuration file that keep every other byte.

Owns the ``lock:`` line of the main section and the section of left-over fleecing images; when to
edit, and under which lock, is left to the node. Source: host behaviour, sections 3.2, 3.4, 6.8.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vzdump_qemu.errors import ConfigError

_HEADER = re.compile(rb"\[(.*)\]\s*", re.DOTALL)
_LOCK_LINE = re.compile(rb"lock:\s*\S.*", re.DOTALL)
_OPTION_LINE = re.compile(rb"[a-z].*", re.DOTALL)
_LOCK_VALUE = re.compile(r"[a-z]+(?:-[a-z]+)*")
_VOLUME_ID = re.compile(r"[^\s,;]+")
_FLEECING_TITLE = b"special:fleecing"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    """Lines of one section, its header first; title None for the main section."""

    title: bytes | None
    lines: tuple[bytes, ...]

    @property
    def is_fleecing(self) -> bool:
        return self.title is not None and self.title.lower() == _FLEECING_TITLE

    @property
    def trailing_blanks(self) -> tuple[bytes, ...]:
        count = 0
        while count < len(self.lines) and not self.lines[-1 - count].strip():
            count += 1
        return self.lines[len(self.lines) - count :]


def set_lock_line(raw: bytes, value: str) -> bytes:
    """Put ``lock: value`` into the main section, in the place of an earlier lock if any.

    Raises: ConfigError for a value that is no lock name.
    """
    if _LOCK_VALUE.fullmatch(value) is None:
        raise ConfigError(f"'{value}' is no name of a lock")
    lines = remove_lock_line(raw).split(b"\n")
    # Before the first option there is always a line end, so removing it restores the bytes.
    index = next(
        (
            place
            for place, line in enumerate(lines[: _main_line_count(lines)])
            if _OPTION_LINE.fullmatch(line)
        ),
        0,
    )
    lines.insert(index, b"lock: " + value.encode("ascii"))
    return b"\n".join(lines)


def remove_lock_line(raw: bytes) -> bytes:
    """Drop the ``lock:`` line of the main section; the same bytes if there is none."""
    lines = raw.split(b"\n")
    count = _main_line_count(lines)
    main = [line for line in lines[:count] if not _LOCK_LINE.fullmatch(line)]
    return b"\n".join([*main, *lines[count:]])


def set_fleecing_images(raw: bytes, volids: Sequence[str]) -> bytes:
    """Record the images that still have to be removed; without any the section goes.

    Raises: ConfigError for a volume id that cannot stand in a list.
    """
    for volid in volids:
        if _VOLUME_ID.fullmatch(volid) is None:
            raise ConfigError(f"unable to parse volume ID '{volid}'")
    entry = b"fleecing-images: " + ",".join(volids).encode("utf-8", errors="backslashreplace")
    is_written = not volids
    lines: list[bytes] = []
    sections = tuple(_sections(raw.split(b"\n")))
    for section in sections:
        if not section.is_fleecing:
            lines.extend(section.lines)
        elif not is_written:
            lines.extend((section.lines[0], entry, *section.trailing_blanks))
            is_written = True
        elif section is sections[-1]:
            # The blank line above belongs to the section; the file's last line end does not.
            if lines and not lines[-1].strip():
                lines.pop()
            lines.append(b"")
    if not is_written:
        if lines[-1]:
            lines.append(b"")
        lines.extend((b"[" + _FLEECING_TITLE + b"]", entry, b""))
    return b"\n".join(lines)


def _main_line_count(lines: Sequence[bytes]) -> int:
    return next((place for place, line in enumerate(lines) if _HEADER.fullmatch(line)), len(lines))


def _sections(lines: Sequence[bytes]) -> Iterator[_Section]:
    title: bytes | None = None
    start = 0
    for place, line in enumerate(lines):
        header = _HEADER.fullmatch(line)
        if header is None:
            continue
        yield _Section(title=title, lines=tuple(lines[start:place]))
        title, start = header[1], place
    yield _Section(title=title, lines=tuple(lines[start:]))
