"""Requests and replies: exact bytes, and what a server may not do."""

from __future__ import annotations

import struct

import pytest

from vzdump_qemu.errors import DiskReadError
from vzdump_qemu.formats.nbd import (
    PendingRead,
    check_data_length,
    check_error_length,
    check_hole_length,
    chunk_name,
    decode_error,
    decode_reply_front,
    encode_block_status,
    encode_disconnect,
    encode_read,
    server_error,
)


def _hole(offset: int, length: int) -> bytes:
    return struct.pack(">QI", offset, length)


def test_requests_are_encoded_as_the_protocol_says() -> None:
    assert encode_read(5, 1 << 40, 65536).hex() == (
        "25609513" "0000" "0000" "0000000000000005" "0000010000000000" "00010000"
    )  # fmt: skip
    assert encode_read(5, 0, 512, in_one_chunk=True)[4:8].hex() == "00040000"
    assert encode_block_status(6, 0, 1 << 30).hex() == (
        "25609513" "0000" "0007" "0000000000000006" "0000000000000000" "40000000"
    )  # fmt: skip
    assert encode_disconnect()[4:8] == b"\0\0\0\2"


def test_front_of_a_chunk_and_of_a_simple_reply_are_told_apart() -> None:
    front = decode_reply_front(struct.pack(">IHHQ", 0x668E33EF, 1, 2, 9), structured=True)
    assert (front.cookie, front.chunk_type, front.is_last) == (9, 2, True)
    front = decode_reply_front(struct.pack(">IIQ", 0x67446698, 5, 9), structured=True)
    assert (front.chunk_type, front.error) == (None, 5)


@pytest.mark.parametrize(
    ("raw", "structured"),
    [
        (bytes(16), True),
        # A simple reply that promises data has no place among chunks, and the other way round.
        (struct.pack(">IIQ", 0x67446698, 0, 9), True),
        (struct.pack(">IHHQ", 0x668E33EF, 1, 2, 9), False),
    ],
)
def test_front_that_cannot_be_a_reply_is_refused(raw: bytes, structured: bool) -> None:
    with pytest.raises(DiskReadError, match="something else than a reply"):
        decode_reply_front(raw, structured=structured)


def test_errors_say_what_the_server_said() -> None:
    assert server_error(5).message == "Input/output error"
    assert server_error(77).message == "error 77"
    said = decode_error(struct.pack(">IH", 22, 9) + b"bad\nblock" + b"surplus")
    assert said.message == "Invalid argument (bad block)"


@pytest.mark.parametrize("length", [0, 5, 65537])
def test_error_of_impossible_length_is_refused(length: int) -> None:
    with pytest.raises(DiskReadError, match="announced an error of"):
        check_error_length(length)


def test_chunk_lengths_are_held_against_the_request() -> None:
    pending = PendingRead(0, 4096)
    check_data_length(8 + 4096, pending)
    for length in (0, 8, 8 + 4097, 1 << 31):
        with pytest.raises(DiskReadError, match="announced a data chunk"):
            check_data_length(length, pending)
    check_hole_length(12)
    with pytest.raises(DiskReadError, match="announced a hole chunk"):
        check_hole_length(13)
    assert chunk_name(0x1234) == "0x1234"


def test_read_answered_in_parts_of_any_order_is_whole() -> None:
    pending = PendingRead(1000, 100)
    assert pending.take_hole(_hole(1050, 50)) == (50, 50)
    with pytest.raises(DiskReadError, match="before all of it was sent"):
        pending.check_whole()
    assert pending.take_data(8 + 10, 1000) == (0, 10)
    assert pending.take_data(8 + 10, 1020) == (20, 10)
    assert pending.take_data(8 + 20, 1030) == (30, 20)
    assert pending.take_data(8 + 10, 1010) == (10, 10)
    pending.check_whole()


@pytest.mark.parametrize("offset", [0, 1, 49])
def test_same_data_twice_is_refused(offset: int) -> None:
    pending = PendingRead(0, 100)
    pending.take_hole(_hole(50, 50))
    pending.take_hole(_hole(0, 10))
    with pytest.raises(DiskReadError, match="same data twice"):
        pending.take_hole(_hole(offset, 2))


@pytest.mark.parametrize(("offset", "length"), [(999, 10), (1091, 10), (1000, 0), (1000, 101)])
def test_data_outside_of_the_request_is_refused(offset: int, length: int) -> None:
    with pytest.raises(DiskReadError, match="not asked for"):
        PendingRead(1000, 100).take_hole(_hole(offset, length))


def test_reply_of_countless_scattered_parts_is_refused() -> None:
    pending = PendingRead(0, 1 << 20)
    with pytest.raises(DiskReadError, match="beyond measure"):
        for offset in range(0, 1 << 20, 2):
            pending.take_hole(_hole(offset, 1))
