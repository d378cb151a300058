"""Frames of HTTP/2 whose data passes the library by: whole, byte by byte, and spoiled."""

from __future__ import annotations

from collections.abc import Iterable

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest
from hyperframe.frame import DataFrame, Frame, HeadersFrame, PingFrame

from vzdump_qemu.formats.pbs.h2_frames import BulkConnection, BulkFrames

HEADERS = [(":method", "POST"), (":scheme", "https"), (":authority", "x"), (":path", "/x")]
LONG = bytes(range(256)) * 32


class Taken:
    """What the data callback was told, copied as it has to be."""

    def __init__(self) -> None:
        self.by_stream: dict[int, bytes] = {}

    def __call__(self, stream_id: int, piece: memoryview) -> None:
        self.by_stream[stream_id] = self.by_stream.get(stream_id, b"") + bytes(piece)


def frames_of(data: bytes, taken: Taken, *, step_bytes: int, server: bool = False) -> list[Frame]:
    """Everything that comes out when the bytes arrive in such pieces, in one buffer used again."""
    frames = BulkFrames(taken, server=server)
    frames.max_frame_size = 1 << 16
    found: list[Frame] = []
    buffer = bytearray(step_bytes)
    for begin in range(0, len(data), step_bytes):
        piece = data[begin : begin + step_bytes]
        buffer[: len(piece)] = piece
        frames.add_data(memoryview(buffer)[: len(piece)])
        found += frames
        buffer[:] = b"\xee" * step_bytes
    return found


def serialized(frames: Iterable[Frame]) -> bytes:
    return b"".join(frame.serialize() for frame in frames)


def data_frame(stream_id: int, data: bytes, *flags: str, pad_length: int = 0) -> DataFrame:
    return DataFrame(stream_id, data, flags=list(flags), pad_length=pad_length)


STREAM = serialized(
    [
        data_frame(1, LONG),
        PingFrame(0, b"12345678"),
        data_frame(3, b"padded", "PADDED", pad_length=9),
        data_frame(1, b""),
        data_frame(1, b"end", "END_STREAM"),
    ]
)


@pytest.mark.parametrize("step_bytes", [1, 2, 8, 9, 10, 1000, len(STREAM)])
def test_data_in_pieces_of_any_length_is_handed_over_in_order(step_bytes: int) -> None:
    taken = Taken()
    found = frames_of(STREAM, taken, step_bytes=step_bytes)
    assert taken.by_stream == {1: LONG + b"end", 3: b"padded"}
    kinds = [(type(frame), frame.stream_id) for frame in found]
    assert kinds == [
        (DataFrame, 1), (PingFrame, 0), (DataFrame, 3), (DataFrame, 1), (DataFrame, 1),
    ]  # fmt: skip
    data = [frame for frame in found if isinstance(frame, DataFrame)]
    assert [frame.flow_controlled_length for frame in data] == [len(LONG), 6 + 10, 0, 3]
    assert ["END_STREAM" in frame.flags for frame in data] == [False, False, False, True]


@pytest.mark.parametrize("step_bytes", [1, 7, 100])
def test_preface_in_pieces_is_taken_off(step_bytes: int) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    taken = Taken()
    found = frames_of(
        preface + serialized([data_frame(1, b"x")]), taken, step_bytes=step_bytes, server=True
    )
    assert (len(found), taken.by_stream) == (1, {1: b"x"})
    with pytest.raises(h2.exceptions.ProtocolError):
        frames_of(b"GET / HTTP/1.1\r\n\r\n" + bytes(10), Taken(), step_bytes=5, server=True)


def test_frame_too_long_is_refused_by_its_header() -> None:
    for kind in (0x0, 0x1, 0x4):
        with pytest.raises(h2.exceptions.FrameTooLargeError):
            frames_of(b"\1\0\1" + bytes([kind]) + b"\0\0\0\0\1", Taken(), step_bytes=9)


def test_data_inside_a_header_block_is_refused() -> None:
    begun = HeadersFrame(1, b"\x88")
    with pytest.raises(h2.exceptions.ProtocolError, match="header block"):
        frames_of(serialized([begun, data_frame(1, b"x")]), Taken(), step_bytes=1000)


def test_header_block_in_several_frames_is_one_frame() -> None:
    begun = HeadersFrame(1, b"\x88")
    rest = b"\0\0\1\x09\x04\0\0\0\1\x88"
    found = frames_of(
        serialized([begun]) + rest + serialized([data_frame(1, b"x")]), Taken(), step_bytes=3
    )
    assert [type(frame) for frame in found] == [HeadersFrame, DataFrame]
    assert isinstance(found[0], HeadersFrame)
    assert found[0].data == b"\x88\x88"


def test_data_of_stream_zero_is_left_to_the_library() -> None:
    with pytest.raises(h2.exceptions.ProtocolError):
        frames_of(b"\0\0\1\0\0\0\0\0\0x", Taken(), step_bytes=100)


def connections() -> tuple[BulkConnection, h2.connection.H2Connection, Taken]:
    """Ours as the client, the library's own as the server, past their settings."""
    taken = Taken()
    client = BulkConnection(h2.config.H2Configuration(client_side=True), taken)
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    client.initiate_connection()
    server.initiate_connection()
    server.receive_data(b"".join(client.buffers_to_send()))
    client.receive_data(server.data_to_send())
    return client, server, taken


def test_long_data_is_sent_as_the_buffer_that_was_given() -> None:
    client, server, _ = connections()
    client.buffers_to_send()
    view = memoryview(bytearray(LONG))
    client.send_headers(1, HEADERS)
    client.send_data(1, b"short ")
    client.send_data(1, view)
    client.send_data(1, b" end", end_stream=True)
    buffers = client.buffers_to_send()
    assert any(buffer is view for buffer in buffers)
    assert client.buffers_to_send() == []
    events = server.receive_data(b"".join(buffers))
    data = [event for event in events if isinstance(event, h2.events.DataReceived)]
    assert b"".join(event.data for event in data) == b"short " + LONG + b" end"
    assert isinstance(events[-1], h2.events.StreamEnded)


def test_credit_is_used_by_data_that_is_not_copied() -> None:
    client, server, _ = connections()
    client.send_headers(1, HEADERS)
    before = client.local_flow_control_window(1)
    client.send_data(1, memoryview(LONG), end_stream=True)
    assert client.local_flow_control_window(1) == before - len(LONG)
    server.receive_data(b"".join(client.buffers_to_send()))
    server.acknowledge_received_data(len(LONG), 1)


def test_reply_gives_lengths_in_events_and_data_to_the_taker() -> None:
    client, server, taken = connections()
    client.send_headers(1, HEADERS, end_stream=True)
    server.receive_data(b"".join(client.buffers_to_send()))
    server.send_headers(1, [(":status", "200"), ("content-length", str(len(LONG) + 2))])
    server.send_data(1, LONG)
    server.send_data(1, b"p!", end_stream=True, pad_length=7)
    lengths = [
        event.flow_controlled_length
        for event in client.receive_data(server.data_to_send())
        if isinstance(event, h2.events.DataReceived)
    ]
    assert taken.by_stream == {1: LONG + b"p!"}
    assert lengths == [len(LONG), 2 + 8]


def test_reply_of_another_length_than_announced_is_refused() -> None:
    client, server, _ = connections()
    client.send_headers(1, HEADERS, end_stream=True)
    server.receive_data(b"".join(client.buffers_to_send()))
    server.send_headers(1, [(":status", "200"), ("content-length", "9000")])
    server.send_data(1, LONG, end_stream=True)
    with pytest.raises(h2.exceptions.InvalidBodyLengthError):
        client.receive_data(server.data_to_send())
