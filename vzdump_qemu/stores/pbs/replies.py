"""What servers answer, whichever version of HTTP it came by.

Owns turning statuses and bodies into values or typed errors, in the server's own words but on one
line and within bounds. Source: PBS formats, section 2.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from vzdump_qemu.errors import PbsCorrupt, PbsError, PbsRefused
from vzdump_qemu.formats.pbs.json_text import decode_json

# Room for the longest parameter report; more is no message.
_WORDS_LETTERS_MAX: Final = 600
_HINTS: Final = {
    401: "is the password or token secret right, and the token not revoked or expired?",
    403: "has this user or token the privileges for the datastore and namespace?",
}

_Shape = TypeVar("_Shape")


class _Envelope(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw(b"null")


def check_status(status: int, body: bytes, *, asked: str) -> None:
    """Raise PbsRefused with the server's words unless the status is 200.

    Args:
        asked: names the request where the server says nothing itself.
    """
    if status == 200:
        return
    words = render_words(body) or f"server answered {asked} with status {status}"
    raise PbsRefused(words, status=status, hint=_HINTS.get(status, ""))


def unwrap(body: bytes, *, bytes_max: int) -> bytes:
    """``data`` of a reply, still JSON.

    Raises:
        PbsError: no such reply.
    """
    try:
        return bytes(decode_json(body, _Envelope, bytes_max=bytes_max, what="reply").data)
    except PbsCorrupt as error:
        raise PbsError(f"server sent something else than a reply: {error.message}") from error


def decode_data(data: bytes, shape: type[_Shape], *, what: str) -> _Shape:
    """A value of a known shape from ``data``.

    Raises:
        PbsError: another shape.
    """
    try:
        return decode_json(data, shape, bytes_max=len(data), what=what)
    except PbsCorrupt as error:
        raise PbsError(f"server sent an unexpected {what}: {error.message}") from error


def render_words(body: bytes) -> str:
    """A server's message as one line without what would upset a terminal."""
    text = body[: 4 * _WORDS_LETTERS_MAX].decode(errors="replace")
    text = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:_WORDS_LETTERS_MAX]
