"""Bytes of a QMP or guest agent channel to JSON values and back, with QEMU's own parse errors.

Owns splitting and parsing. QEMU does not look at line ends: a message is complete when its braces
balance, so one packet may hold several and one message may come in many packets. A lexical error
(a control character in a string, a byte 0xFF anywhere) throws away what was collected; agents use
that to resynchronise. What a message means is left to `monitor` and `agent`.
Source: recorded sessions ``pve-protocol`` and ``qga-protocol``.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from vzsim.fakeqmp.json_text import JsonError, MessageReader

_SPACE_TEXT = " \t\r\n"
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1
# Messages are trees: a look for circles would take as long as writing them.
_ENCODER = json.JSONEncoder(check_circular=False)


class Constant(list[Any]):
    """A list that nobody changes, nor what is in it: `as_read` need not copy it."""

    __slots__ = ()


_SHARED = frozenset((str, int, bool, float, type(None), Constant))


class Message(NamedTuple):
    """One JSON value received."""

    value: Any


class ParseFailure(NamedTuple):
    """Input that is no JSON value; `description` is QEMU's text."""

    description: str


def encode(value: object, *, line_end: bytes) -> bytes:
    """One message as QEMU writes it (ASCII only), with the line end of the channel."""
    return _ENCODER.encode(value).encode("ascii") + line_end


def as_read(value: Any) -> Any:
    """What a reader makes of a value that was written: a copy of its own, lists for tuples.

    For two ends in one process, which need no text between them.
    """
    kind = type(value)
    if kind is dict:
        return {
            name: member if type(member) in _SHARED else as_read(member)
            for name, member in value.items()
        }
    if kind in _SHARED:
        return value
    if issubclass(kind, list | tuple):
        return [as_read(element) for element in value]
    if issubclass(kind, dict):
        return as_read(dict(value))
    # What else can be written, such as an enumeration that is a str, is read as something plain.
    return json.loads(_ENCODER.encode(value))


class Decoder:
    """Incremental decoder: feed bytes as they come, get messages and failures in order."""

    __slots__ = ("_reader",)

    def __init__(self) -> None:
        self._reader = MessageReader()

    def feed(self, data: bytes) -> list[Message | ParseFailure]:
        """Take bytes; return what became complete."""
        found: list[Message | ParseFailure] = []
        # Whole messages are the rule, and a packet of them needs no lexer that can wait.
        rest = _take_whole(data, found) if self._reader.is_idle else data
        for value in self._reader.feed(rest):
            if isinstance(value, JsonError):
                found.append(ParseFailure(description=str(value)))
            else:
                found.append(Message(value=value))
        return found

    def reset(self) -> None:
        """Forget an unfinished message (a monitor does so when its client leaves)."""
        self._reader.reset()


def _take_whole(data: bytes, found: list[Message | ParseFailure]) -> bytes:
    """Take objects from the front while they are plain JSON; return what is left to look at."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return data
    if "\\u" in text or not text.isascii():
        # Which characters are none is QEMU's to judge.
        return data
    index, end = 0, len(text)
    while index < end:
        if text[index] in _SPACE_TEXT:
            index += 1
            continue
        if text[index] != "{":
            break
        try:
            value, index = _SCANNER.raw_decode(text, index)
        except (ValueError, RecursionError):
            break
        found.append(Message(value=value))
    return text[index:].encode()


def _members_once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python takes the last of two members of one name, QEMU takes neither."""
    found = dict(members)
    if len(found) != len(members):
        raise ValueError("duplicate key")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _number(text: str) -> int | float:
    number = int(text)
    return number if _INT_MIN <= number <= _INT_MAX else float(number)


_SCANNER = json.JSONDecoder(
    object_pairs_hook=_members_once, parse_constant=_no_constant, parse_int=_number
)
