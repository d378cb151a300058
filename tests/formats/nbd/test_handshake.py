"""The negotiation, against the simulator's session and against servers that misbehave."""

from __future__ import annotations

import struct

import pytest

from tests.nbd_peer import GREETING, Directory, memory_export, option_reply
from vzdump_qemu.errors import DiskReadError
from vzdump_qemu.formats.nbd import NbdExport, NbdHandshake
from vzsim.fakeqmp.bitmaps import Bitmap
from vzsim.fakeqmp.nbd_session import NbdSession

_SIZE_BYTES = 3 << 16


def _negotiate(handshake: NbdHandshake, directory: Directory) -> NbdExport:
    incoming = bytearray()
    session = NbdSession(directory, incoming.extend)
    while handshake.export is None:
        assert len(incoming) >= handshake.needed_bytes > 0
        raw = bytes(incoming[: handshake.needed_bytes])
        del incoming[: len(raw)]
        session.feed(handshake.give(raw))
    assert not incoming
    return handshake.export


def _feed(handshake: NbdHandshake, data: bytes) -> None:
    while data:
        count = handshake.needed_bytes
        assert count
        handshake.give(data[:count])
        data = data[count:]


def test_handshake_with_simulated_server_opens_the_export() -> None:
    bitmap = Bitmap(name="inc", size_bytes=_SIZE_BYTES)
    directory = Directory([memory_export(bytes(_SIZE_BYTES), bitmaps=[bitmap])])
    export = _negotiate(NbdHandshake("d", bitmap_name="inc"), directory)
    assert export == NbdExport(
        size_bytes=_SIZE_BYTES,
        can_multi_conn=True,
        has_structured_replies=True,
        can_df=False,
        block_bytes_min=1,
        request_bytes_max=32 << 20,
        allocation_context_id=1,
        bitmap_context_id=2,
    )


def test_handshake_for_unknown_export_says_so() -> None:
    directory = Directory([memory_export(bytes(512))])
    with pytest.raises(DiskReadError, match="'nope' cannot be opened: the server has no such"):
        _negotiate(NbdHandshake("nope"), directory)


def test_handshake_without_the_wanted_bitmap_is_refused() -> None:
    directory = Directory([memory_export(bytes(512))])
    with pytest.raises(DiskReadError, match="does not serve the bitmap 'inc'"):
        _negotiate(NbdHandshake("d", bitmap_name="inc"), directory)


def test_handshake_with_server_of_simple_replies_knows_no_contexts() -> None:
    handshake = NbdHandshake("d")
    info = struct.pack(">HQH", 0, 4096, 1)
    _feed(
        handshake,
        GREETING + option_reply(8, 0x80000001) + option_reply(7, 3, info) + option_reply(7, 1),
    )
    assert handshake.export is not None
    assert not handshake.export.has_structured_replies
    assert not handshake.export.can_multi_conn
    assert handshake.export.allocation_context_id is None


def test_handshake_keeps_the_text_of_a_refusal_on_one_line() -> None:
    handshake = NbdHandshake("d")
    with pytest.raises(DiskReadError) as caught:
        _feed(
            handshake,
            GREETING
            + option_reply(8, 0x80000001)
            + option_reply(7, 0x80000002, b"keep\nout\x1b[0m" + b"!" * 9000),
        )
    assert caught.value.message.startswith(
        "NBD export 'd' cannot be opened: the server's policy forbids it (keep out [0m!!"
    )
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 5000


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1 Debian-2", "wrong greeting"),
        (GREETING[:16] + b"\0\0", "does not know the fixed newstyle"),
        (GREETING + bytes(20), "something else than the reply"),
        (GREETING + option_reply(7, 1), "something else than the reply"),
        (GREETING + struct.pack(">QIII", 0x3E889045565A9, 8, 1, 1 << 30), "option reply of 1073"),
        (GREETING + option_reply(8, 1) + option_reply(10, 4, b"\0"), "short metadata context"),
        (GREETING + option_reply(8, 2) + option_reply(7, 3, b"\0"), "malformed information"),
        (GREETING + option_reply(8, 2) + option_reply(7, 1), "no usable size"),
        (GREETING + option_reply(8, 2) + option_reply(7, 3, b"\0\5") * 70, "not come to an end"),
        (
            GREETING
            + option_reply(8, 2)
            + option_reply(7, 3, struct.pack(">HQH", 0, 512, 1))
            + option_reply(7, 3, struct.pack(">HIII", 3, 3, 4096, 1 << 25))
            + option_reply(7, 1),
            "wants blocks of 3 to",
        ),
        (
            GREETING
            + option_reply(8, 2)
            + option_reply(7, 3, struct.pack(">HQH", 0, 1 << 63, 1))
            + option_reply(7, 1),
            "no usable size",
        ),
    ],
)
def test_handshake_with_broken_server_ends_with_a_reason(said: bytes, reason: str) -> None:
    with pytest.raises(DiskReadError, match=reason):
        _feed(NbdHandshake("d"), said)


def test_export_name_over_the_protocol_limit_is_refused() -> None:
    with pytest.raises(DiskReadError, match="over 4096 bytes"):
        NbdHandshake("ü" * 2049)
