"""The grammar of Proxmox VE's files of sections: ``storage.cfg``, ``jobs.cfg``.

Owns headers, option lines, comments and where a section ends. Which types, ids and keys there
are, and what becomes of a line that is not understood, is left to the format of each file.
Source: host behaviour, section 5.1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_HEADER = re.compile(r"(\S+):\s*(\S+)\s*", re.ASCII)
_OPTION = re.compile(r"\s+(\S+)(?:\s+(.*?))?\s*", re.ASCII | re.DOTALL)
_BLANKS = " \t\r\n\f\v"


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionLine:
    """One line that is neither a header nor a comment.

    Attributes:
        number: in the file, from 1.
        text: the whole line.
        key: of an option; empty for a line that cannot be read as one.
        value: empty where none is written.
    """

    number: int
    text: str
    key: str = ""
    value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A header and what follows it, nothing checked; the type is in lower case."""

    type: str
    section_id: str
    number: int
    lines: tuple[SectionLine, ...]


def split_sections(raw: bytes) -> tuple[Section | SectionLine, ...]:
    """All sections in the file's order, and between them the lines that belong to none.

    A section ends at an empty line only: a header before that is one of its lines.
    """
    found: list[Section | SectionLine] = []
    header: Section | None = None
    lines: list[SectionLine] = []
    text = raw.decode("utf-8", errors="backslashreplace")
    for number, line in enumerate([*text.split("\n"), ""], 1):
        stripped = line.strip(_BLANKS)
        if not line:
            if header is not None:
                found.append(_close(header, lines))
            header, lines = None, []
        elif not stripped or stripped.startswith("#"):
            continue
        elif header is not None:
            lines.append(_read_line(number, line))
        elif match := _HEADER.fullmatch(line):
            header = Section(type=match[1].lower(), section_id=match[2], number=number, lines=())
        else:
            found.append(SectionLine(number=number, text=line))
    return tuple(found)


def _close(header: Section, lines: list[SectionLine]) -> Section:
    return Section(
        type=header.type,
        section_id=header.section_id,
        number=header.number,
        lines=tuple(lines),
    )


def _read_line(number: int, text: str) -> SectionLine:
    match = _OPTION.fullmatch(text)
    if match is None:
        return SectionLine(number=number, text=text)
    return SectionLine(number=number, text=text, key=match[1], value=match[2] or "")
