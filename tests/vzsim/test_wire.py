"""The wire of a monitor: whole packets are read fast, and as the lexer that can wait reads them."""

from __future__ import annotations

import enum
import json
from typing import Any

import pytest

from vzsim.fakeqmp.wire import Constant, Decoder, Message, ParseFailure, as_read, encode

_PACKETS = [
    b'{"execute": "query-status", "id": 1}\r\n',
    b'  \t\r\n{"execute": "stop"}{"execute": "cont"}\n',
    b'{"a": {"b": [1, -2, 0.5, 1e3, true, false, null, "text", {}]}}',
    b'{"a": 18446744073709551615, "b": -9223372036854775808}',
    b'{"a": 18446744073709551616, "b": -9223372036854775809}',
    b'{"a": 1, "a": 2}',
    b'{"a": {"b": 1, "b": 1}}{"c": 3}',
    b'{"a": NaN}',
    b'{"a": Infinity}{"b": 1}',
    b'{"a": 01}',
    b'{"a": 1,}',
    b'{"a" 1}',
    b"{'a': 'single'}",
    b'{"a": "\\u00e9 \\ud83d\\ude00"}',
    b'{"a": "\\ud800"}',
    '{"a": "é"}'.encode(),
    b'{"a": "\xff"}{"b": 1}',
    b'{"a": "tab\there"}{"b": 1}',
    b'{"a": "slash \\/ quote \\" back \\\\"}',
    b'{"execute": "stop"} stray {"execute": "cont"}',
    b'[1, 2]{"a": 1}',
    b'"text"\n{"a": 1}\n',
    b'{"a": ' + b"[" * 1100 + b"]" * 1100 + b"}",
    b'}{"a": 1}',
    b"",
]


def _read_bytewise(data: bytes) -> list[Message | ParseFailure]:
    decoder = Decoder()
    # A message that was begun is never read in one go.
    return [found for byte in data for found in decoder.feed(bytes([byte]))]


@pytest.mark.parametrize("packet", _PACKETS)
def test_packet_fed_whole_gives_what_it_gives_byte_by_byte(packet: bytes) -> None:
    assert Decoder().feed(packet) == _read_bytewise(packet)


@pytest.mark.parametrize("packet", _PACKETS)
def test_packet_after_a_begun_message_gives_what_it_gives_byte_by_byte(packet: bytes) -> None:
    decoder = Decoder()
    found = decoder.feed(b'{"begun": ') + decoder.feed(b"1}" + packet)
    assert found == _read_bytewise(b'{"begun": 1}' + packet)


def test_two_members_of_one_name_are_refused_and_the_next_message_is_read() -> None:
    assert Decoder().feed(b'{"a": 1, "a": 2}{"b": 3}') == [
        ParseFailure(description="JSON parse error, duplicate key"),
        Message(value={"b": 3}),
    ]


def test_number_wider_than_64_bits_is_read_as_a_float() -> None:
    (found,) = Decoder().feed(b'{"a": 18446744073709551616}')
    assert isinstance(found, Message)
    assert isinstance(found.value["a"], float)


def test_whole_messages_before_a_begun_one_come_at_once() -> None:
    decoder = Decoder()
    assert decoder.feed(b'{"a": 1}{"b": ') == [Message(value={"a": 1})]
    assert decoder.feed(b"2}") == [Message(value={"b": 2})]


def test_reset_forgets_what_a_packet_began() -> None:
    decoder = Decoder()
    decoder.feed(b'{"a": 1}{"b": ')
    decoder.reset()
    assert decoder.feed(b'{"c": 3}') == [Message(value={"c": 3})]


# -- without text ----------------------------------------------------------------------------------


class _Word(enum.StrEnum):
    ONE = "one"


@pytest.mark.parametrize(
    "value",
    [
        {"return": {}},
        {"a": [1, 2.5, True, None, "é"], "b": {"c": {"d": []}}},
        {"a": (1, (2, 3)), "b": ({"c": ()},)},
        {"a": _Word.ONE, "b": [_Word.ONE]},
        [],
        7,
    ],
)
def test_value_read_without_text_equals_the_one_read_from_text(value: Any) -> None:
    from_text = json.loads(encode(value, line_end=b"\n"))
    assert as_read(value) == from_text
    assert repr(as_read(value)) == repr(from_text)


def test_value_read_without_text_shares_nothing_with_the_writer() -> None:
    written: dict[str, Any] = {"a": [{"b": 1}], "c": {"d": [2]}}
    read = as_read(written)
    read["a"][0]["b"] = read["c"]["d"][0] = 9
    read["a"].append(3)
    assert written == {"a": [{"b": 1}], "c": {"d": [2]}}


def test_constant_is_shared_with_the_writer() -> None:
    constant = Constant([{"name": "big"}])
    assert as_read({"return": constant})["return"] is constant
    assert json.loads(encode(constant, line_end=b"")) == constant
