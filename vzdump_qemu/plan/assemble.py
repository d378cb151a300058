"""The VM configuration as it is stored in an archive; pure.

Works on raw lines, so that everything that is kept stays byte for byte as it was. Source: host
behaviour, section 1.9.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# Only line feeds end a line: to the parser of the file a lone CR is a character like any other.
_LINE = re.compile(rb"[^\n]*\n|[^\n]+")
_OLD_MARKS = (b"#vzdump#", b"#qmdump#")
_SECTION = re.compile(rb"\[(.*)\]\s*\Z", re.DOTALL)
_UNUSED = re.compile(rb"unused[0-9]+:\s*(\S+)\s*\Z")
_DROPPED = re.compile(rb"(lock|parent):")


@dataclass(frozen=True, slots=True, kw_only=True)
class MapEntry:
    """One line that tells a restore which device of the archive belongs to which drive."""

    key: str
    device_id: str
    storage_id: str
    format: str

    def line(self) -> bytes:
        """The comment line, with its end."""
        text = f"#qmdump#map:{self.key}:{self.device_id}:{self.storage_id}:{self.format}:\n"
        return text.encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class AssembledConfig:
    """The stored configuration and what was left out of it.

    Attributes:
        unused_volids: of ``unusedN`` lines, in their order.
        skipped_kinds: of ``special``, ``snapshot``, ``pending``, in this order, each once.
    """

    data: bytes
    unused_volids: tuple[str, ...]
    skipped_kinds: tuple[str, ...]


def assemble_config(raw: bytes, entries: Sequence[MapEntry]) -> AssembledConfig:
    """Keep the main section without locks and left-overs, and append the map lines."""
    kept: list[bytes] = []
    unused: list[str] = []
    kinds: set[str] = set()
    for line in _LINE.findall(raw):
        section = _SECTION.match(line)
        if section is not None:
            kinds.add(_kind_of(section[1]))
            continue
        if kinds or line.startswith(_OLD_MARKS) or _DROPPED.match(line):
            continue
        found = _UNUSED.match(line)
        if found is not None:
            unused.append(found[1].decode("utf-8", "replace"))
            continue
        kept.append(line)
    if kept and not kept[-1].endswith(b"\n"):
        # A map line must not be glued to an unfinished last line.
        kept[-1] += b"\n"
    kept.extend(entry.line() for entry in sorted(entries, key=lambda entry: entry.key))
    return AssembledConfig(
        data=b"".join(kept),
        unused_volids=tuple(unused),
        skipped_kinds=tuple(kind for kind in ("special", "snapshot", "pending") if kind in kinds),
    )


def _kind_of(section_name: bytes) -> str:
    if section_name.upper() == b"PENDING":
        return "pending"
    return "special" if section_name.startswith(b"special:") else "snapshot"
