"""QEMU's JSON: its lexer, its notion of a complete message, and its parser's error texts.

Owns what makes QEMU's reading differ from others': single quotes are quotes, line ends mean
nothing, a message is complete when neither braces nor brackets are open, and after a stray
character everything up to the next structural or control character is thrown away. Values that are
told are Python's. Source: asked of QEMU 7.2, recorded sessions ``pve-protocol``, ``qga-protocol``.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

_STRUCTURE = b"{}[],:"
_SPACE = b" \t\r\n"
_DIGITS = string.digits.encode()
_LOWER = string.ascii_lowercase.encode()
_KEYWORDS = {"true": True, "false": False, "null": None}
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_PLAIN_ESCAPES = "\"'\\/"
_NESTING_MAX = 1024
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1


class JsonError(Exception):
    """Input that is no JSON; the text is QEMU's."""


class Kind(Enum):
    """What a token is."""

    STRUCTURE = auto()
    STRING = auto()
    INTEGER = auto()
    FLOAT = auto()
    KEYWORD = auto()
    ERROR = auto()


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of text that means something."""

    kind: Kind
    text: bytes


class _State(Enum):
    START = auto()
    RECOVERY = auto()
    STRING = auto()
    ESCAPE = auto()
    ZERO = auto()
    DIGITS = auto()
    SIGN = auto()
    MANTISSA = auto()
    MANTISSA_DIGITS = auto()
    EXPONENT = auto()
    EXPONENT_SIGN = auto()
    EXPONENT_DIGITS = auto()
    KEYWORD = auto()


# Per state of a number: what each next byte leads to, and what the token is when another comes.
_NUMBERS: dict[_State, tuple[tuple[tuple[bytes, _State], ...], Kind]] = {
    _State.ZERO: (((b".", _State.MANTISSA), (b"eE", _State.EXPONENT)), Kind.INTEGER),
    _State.DIGITS: (
        ((_DIGITS, _State.DIGITS), (b".", _State.MANTISSA), (b"eE", _State.EXPONENT)),
        Kind.INTEGER,
    ),
    _State.SIGN: (((b"0", _State.ZERO), (b"123456789", _State.DIGITS)), Kind.ERROR),
    _State.MANTISSA: (((_DIGITS, _State.MANTISSA_DIGITS),), Kind.ERROR),
    _State.MANTISSA_DIGITS: (
        ((_DIGITS, _State.MANTISSA_DIGITS), (b"eE", _State.EXPONENT)),
        Kind.FLOAT,
    ),
    _State.EXPONENT: (
        ((b"+-", _State.EXPONENT_SIGN), (_DIGITS, _State.EXPONENT_DIGITS)),
        Kind.ERROR,
    ),
    _State.EXPONENT_SIGN: (((_DIGITS, _State.EXPONENT_DIGITS),), Kind.ERROR),
    _State.EXPONENT_DIGITS: (((_DIGITS, _State.EXPONENT_DIGITS),), Kind.FLOAT),
}


class Lexer:
    """Bytes to tokens, one by one."""

    __slots__ = ("_quote", "_state", "_token")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget what was begun."""
        self._state = _State.START
        self._quote = 0
        self._token = bytearray()

    @property
    def is_idle(self) -> bool:
        """Nothing has been begun."""
        return self._state is _State.START

    def feed(self, byte: int) -> Iterator[Token]:
        """Take one byte; it may end one token and be the next."""
        if self._state is _State.KEYWORD and byte not in _LOWER:
            yield self._end(Kind.KEYWORD)
        elif self._state in _NUMBERS:
            moves, kind = _NUMBERS[self._state]
            for wanted, state in moves:
                if byte in wanted:
                    self._go_on(byte, state)
                    return
            is_bad_zero = self._state is _State.ZERO and byte in _DIGITS
            if kind is Kind.ERROR or is_bad_zero:
                yield self._stray(byte)
                return
            yield self._end(kind)
        elif self._state is _State.RECOVERY:
            if 0x20 <= byte < 0xFE and byte not in _STRUCTURE:
                return
            self._state = _State.START
        if self._state is _State.START:
            yield from self._begin(byte)
        elif self._state is _State.KEYWORD:
            self._token.append(byte)
        else:
            yield from self._in_string(byte)

    def _begin(self, byte: int) -> Iterator[Token]:
        if byte in _SPACE:
            return
        if byte in _STRUCTURE:
            yield Token(Kind.STRUCTURE, bytes([byte]))
        elif byte in b"\"'":
            self._quote = byte
            self._go_on(byte, _State.STRING)
        elif byte in _LOWER:
            self._go_on(byte, _State.KEYWORD)
        elif byte in _DIGITS:
            self._go_on(byte, _State.DIGITS if byte != ord("0") else _State.ZERO)
        elif byte == ord("-"):
            self._go_on(byte, _State.SIGN)
        else:
            yield self._stray(byte)

    def _in_string(self, byte: int) -> Iterator[Token]:
        if byte < 0x20 or byte >= 0xFE:
            yield self._stray(byte)
        elif self._state is _State.ESCAPE:
            self._go_on(byte, _State.STRING)
        elif byte == self._quote:
            self._token.append(byte)
            yield self._end(Kind.STRING)
        else:
            self._go_on(byte, _State.ESCAPE if byte == ord("\\") else _State.STRING)

    def _go_on(self, byte: int, state: _State) -> None:
        self._token.append(byte)
        self._state = state

    def _end(self, kind: Kind) -> Token:
        token = Token(kind, bytes(self._token))
        self.reset()
        return token

    def _stray(self, byte: int) -> Token:
        self._token.append(byte)
        token = self._end(Kind.ERROR)
        self._state = _State.RECOVERY
        return token


class MessageReader:
    """Tokens to messages: a value each, or a `JsonError`."""

    __slots__ = ("_brace_depth", "_bracket_depth", "_lexer", "_tokens")

    def __init__(self) -> None:
        self._lexer = Lexer()
        self._tokens: list[Token] = []
        self._brace_depth = self._bracket_depth = 0

    def reset(self) -> None:
        """Forget an unfinished message."""
        self._lexer.reset()
        self._forget_tokens()

    @property
    def is_idle(self) -> bool:
        """No message has been begun."""
        return not self._tokens and self._lexer.is_idle

    def feed(self, data: bytes) -> Iterator[Any]:
        """Take bytes; values that became complete, or errors as `JsonError` objects."""
        for byte in data:
            for token in self._lexer.feed(byte):
                yield from self._take(token)

    def _take(self, token: Token) -> Iterator[Any]:
        match token.text:
            case b"{":
                self._brace_depth += 1
            case b"}":
                self._brace_depth -= 1
            case b"[":
                self._bracket_depth += 1
            case b"]":
                self._bracket_depth -= 1
        if token.kind is Kind.ERROR:
            self._forget_tokens()
            # The text ends at a zero byte, as C's do.
            text = token.text.split(b"\0")[0].decode("utf-8", "replace")
            yield JsonError(f"JSON parse error, stray '{text}'")
            return
        if self._brace_depth + self._bracket_depth > _NESTING_MAX:
            self._forget_tokens()
            yield JsonError("JSON nesting depth limit exceeded")
            return
        self._tokens.append(token)
        depths = (self._brace_depth, self._bracket_depth)
        if max(depths) > 0 and min(depths) >= 0:
            return
        tokens = self._tokens
        self._forget_tokens()
        try:
            yield _Parser(tokens).whole()
        except JsonError as error:
            yield JsonError(f"JSON parse error, {error}")

    def _forget_tokens(self) -> None:
        self._tokens = []
        self._brace_depth = self._bracket_depth = 0


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._index = 0

    def whole(self) -> Any:
        """The one value. Raises: JsonError."""
        value = self._value()
        if self._index < len(self._tokens):
            raise JsonError("expecting value")
        return value

    def _next(self) -> Token:
        if self._index >= len(self._tokens):
            raise JsonError("premature EOI")
        self._index += 1
        return self._tokens[self._index - 1]

    def _value(self) -> Any:
        token = self._next()
        match token.kind:
            case Kind.STRING:
                return _string(token.text)
            case Kind.INTEGER:
                number = int(token.text)
                return number if _INT_MIN <= number <= _INT_MAX else float(number)
            case Kind.FLOAT:
                return float(token.text)
            case Kind.KEYWORD:
                word = token.text.decode()
                if word not in _KEYWORDS:
                    raise JsonError(f"invalid keyword '{word}'")
                return _KEYWORDS[word]
        match token.text:
            case b"{":
                return self._object()
            case b"[":
                return self._list()
            case _:
                raise JsonError("expecting value")

    def _is_next(self, text: bytes) -> bool:
        is_there = self._index < len(self._tokens) and self._tokens[self._index].text == text
        self._index += is_there
        return is_there

    def _object(self) -> dict[str, Any]:
        members: dict[str, Any] = {}
        if self._is_next(b"}"):
            return members
        while True:
            name = self._value()
            if not isinstance(name, str):
                raise JsonError("key is not a string in object")
            if self._next().text != b":":
                raise JsonError("missing : in object pair")
            value = self._value()
            if name in members:
                raise JsonError("duplicate key")
            members[name] = value
            separator = self._next().text
            if separator == b"}":
                return members
            if separator != b",":
                raise JsonError("expected separator in dict")

    def _list(self) -> list[Any]:
        items: list[Any] = []
        if self._is_next(b"]"):
            return items
        while True:
            items.append(self._value())
            separator = self._next().text
            if separator == b"]":
                return items
            if separator != b",":
                raise JsonError("expected separator in list")


def _string(token: bytes) -> str:
    """A string token without its quotes, escapes undone. Raises: JsonError."""
    try:
        # QEMU takes the two-byte form of the zero character.
        text = token[1:-1].replace(b"\xc0\x80", b"\\u0000").decode("utf-8")
    except UnicodeDecodeError:
        raise JsonError("invalid UTF-8 sequence in string") from None
    parts, index = [], 0
    while index < len(text):
        character = text[index]
        if character != "\\":
            if not _is_valid(ord(character)):
                raise JsonError("invalid UTF-8 sequence in string")
            parts.append(character)
            index += 1
            continue
        escape = text[index + 1]
        if escape == "u":
            # Of a text that ends too early QEMU shows the closing quote.
            found, length = _unicode_escape(text[index:] + chr(token[-1]))
            parts.append(found)
            index += length
            continue
        if escape not in _ESCAPES and escape not in _PLAIN_ESCAPES:
            raise JsonError("invalid escape sequence in string")
        parts.append(_ESCAPES.get(escape, escape))
        index += 2
    return "".join(parts)


def _unicode_escape(text: str) -> tuple[str, int]:
    """The character of ``\\uXXXX``, perhaps a pair, and how long that is. Raises: JsonError."""
    code, length = _hex(text[2:6]), 6
    if 0xD800 <= code < 0xDC00 and text[6:8] == "\\u":
        low = _hex(text[8:12])
        if 0xDC00 <= low < 0xE000:
            code, length = 0x10000 + ((code & 0x3FF) << 10) + (low & 0x3FF), 12
    if not _is_valid(code):
        raise JsonError(f"{text[:6]} is not a valid Unicode character")
    return chr(code), length


def _hex(digits: str) -> int:
    is_whole = len(digits) == 4 and all(each in string.hexdigits for each in digits)
    return int(digits, 16) if is_whole else -1


def _is_valid(code: int) -> bool:
    is_surrogate = 0xD800 <= code < 0xE000
    is_no_character = 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE
    return 0 <= code <= 0x10FFFF and not is_surrogate and not is_no_character
