"""Entries of the systemd journal, as its native socket takes them; pure.

Owns the encoding of one entry into one datagram; sending is an adapter's.
Source: systemd's documented native journal protocol.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

SOCKET_PATH = "/run/systemd/journal/socket"

# Well below what one datagram may hold by default.
VALUE_BYTES_MAX = 16 * 1024
_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_LENGTH_BYTES = 8


def encode_journal_entry(fields: Mapping[str, str]) -> bytes:
    """One entry; values are cut at `VALUE_BYTES_MAX`.

    Raises:
        ValueError: a name that the journal would not keep.
    """
    return b"".join(_encode_field(name, value) for name, value in fields.items())


def _encode_field(name: str, value: str) -> bytes:
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"no name of a journal field: {name!r}")
    raw = value.encode("utf-8", errors="replace")[:VALUE_BYTES_MAX]
    if b"\n" not in raw:
        return b"%s=%s\n" % (name.encode(), raw)
    # Only a length tells where a value of several lines ends.
    return b"%s\n%s%s\n" % (name.encode(), len(raw).to_bytes(_LENGTH_BYTES, "little"), raw)
