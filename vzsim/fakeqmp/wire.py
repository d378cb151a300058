"""Bytes of a QMP or guest agent channel to JSON values and back, with QEMU's own parse errors.

Owns splitting and parsing. QEMU does not look at line ends: a message is complete when its braces
balance, so one packet may hold several and one message may come in many packets. A lexical error
(a control character in a string, a byte 0xFF anywhere) throws away what was collected; agents use
that to resynchronise. What a message means is left to `monitor` and `agent`.
Source: recorded sessions ``pve-protocol`` and ``qga-protocol``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

_SPACE = b" \t\r\n"
_STRUCTURE = b"{}[],:"
_KEYWORDS = {"true": True, "false": False, "null": None}
_RESYNC = 0xFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One JSON value received."""

    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ParseFailure:
    """Input that is no JSON value; `description` is QEMU's text."""

    description: str


class _ParseError(Exception):
    pass


def encode(value: object, *, line_end: bytes) -> bytes:
    """One message as QEMU writes it (ASCII only), with the line end of the channel."""
    return json.dumps(value).encode("ascii") + line_end


class Decoder:
    """Incremental decoder: feed bytes as they come, get messages and failures in order."""

    __slots__ = ("_depth", "_in_string", "_token", "_tokens")

    def __init__(self) -> None:
        self._tokens: list[str] = []
        self._token = bytearray()
        self._in_string = False
        self._depth = 0

    def feed(self, data: bytes) -> list[Message | ParseFailure]:
        """Take bytes; return what became complete."""
        found: list[Message | ParseFailure] = []
        for byte in data:
            self._take(byte, found)
        return found

    def reset(self) -> None:
        """Forget an unfinished message (a monitor does so when its client leaves)."""
        self._tokens.clear()
        self._token.clear()
        self._in_string = False
        self._depth = 0

    def _take(self, byte: int, found: list[Message | ParseFailure]) -> None:
        if self._in_string:
            self._take_in_string(byte, found)
        elif byte == _RESYNC:
            if self._tokens or self._token:
                self._stray(byte, found)
        elif byte in _SPACE:
            self._end_token(found)
        elif byte in _STRUCTURE:
            self._end_token(found)
            self._tokens.append(chr(byte))
            self._depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(chr(byte), 0)
            self._finish_if_balanced(found)
        elif byte == ord('"'):
            self._end_token(found)
            self._token.append(byte)
            self._in_string = True
        else:
            self._token.append(byte)

    def _take_in_string(self, byte: int, found: list[Message | ParseFailure]) -> None:
        if byte < 0x20 or byte == _RESYNC:
            self._stray(byte, found)
            return
        escaped = self._token.endswith(b"\\") and not self._token.endswith(b"\\\\")
        self._token.append(byte)
        if byte == ord('"') and not escaped:
            self._in_string = False
            self._end_token(found)

    def _stray(self, byte: int, found: list[Message | ParseFailure]) -> None:
        text = (bytes(self._token) + bytes([byte])).decode("utf-8", "replace")
        self.reset()
        found.append(ParseFailure(description=f"JSON parse error, stray '{text}'"))

    def _end_token(self, found: list[Message | ParseFailure]) -> None:
        if self._token:
            self._tokens.append(self._token.decode("utf-8", "replace"))
            self._token.clear()
            self._finish_if_balanced(found)

    def _finish_if_balanced(self, found: list[Message | ParseFailure]) -> None:
        if self._depth > 0:
            return
        tokens = list(self._tokens)
        self.reset()
        try:
            found.append(Message(value=_Parser(tokens).whole()))
        except _ParseError as error:
            found.append(ParseFailure(description=f"JSON parse error, {error}"))


class _Parser:
    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._index = 0

    def whole(self) -> Any:
        value = self._value()
        if self._index < len(self._tokens):
            raise _ParseError("expecting value")
        return value

    def _next(self) -> str:
        if self._index >= len(self._tokens):
            raise _ParseError("premature EOI")
        self._index += 1
        return self._tokens[self._index - 1]

    def _value(self) -> Any:
        token = self._next()
        if token == "{":
            return self._object()
        if token == "[":
            return self._list()
        if token[0] in "}],:":
            raise _ParseError("expecting value")
        if token[0] == '"':
            return _string(token)
        if token in _KEYWORDS:
            return _KEYWORDS[token]
        try:
            return json.loads(token)
        except ValueError:
            raise _ParseError(f"invalid keyword '{token}'") from None

    def _object(self) -> dict[str, Any]:
        members: dict[str, Any] = {}
        if self._peek() == "}":
            self._next()
            return members
        while True:
            key = self._next()
            if key[0] != '"':
                raise _ParseError("key is not a string in object")
            if self._next() != ":":
                raise _ParseError("missing : in object pair")
            name = _string(key)
            value = self._value()
            if name in members:
                raise _ParseError("duplicate key")
            members[name] = value
            separator = self._next()
            if separator == "}":
                return members
            if separator != ",":
                raise _ParseError("expected separator in dict")

    def _list(self) -> list[Any]:
        items: list[Any] = []
        if self._peek() == "]":
            self._next()
            return items
        while True:
            items.append(self._value())
            separator = self._next()
            if separator == "]":
                return items
            if separator != ",":
                raise _ParseError("expected separator in list")

    def _peek(self) -> str:
        return self._tokens[self._index] if self._index < len(self._tokens) else ""


def _string(token: str) -> str:
    try:
        return str(json.loads(token))
    except ValueError:
        raise _ParseError("invalid escape sequence") from None
