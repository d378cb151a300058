"""Header blocks that depend on nothing sent before."""

from __future__ import annotations

from hpack.hpack import Decoder
from hypothesis import given
from hypothesis import strategies as st

from vzdump_qemu.formats.pbs.h2_headers import PlainEncoder

_REQUEST = [
    (b":method", b"POST"),
    (b":path", b"/fixed_chunk?digest=" + b"ab" * 32),
    (b"content-type", b"application/octet-stream"),
    (b"x-of-our-own", b"yes"),
]


def test_encode_request_read_back_by_the_library() -> None:
    assert Decoder().decode(PlainEncoder().encode(_REQUEST), raw=True) == _REQUEST


def test_encode_text_as_bytes() -> None:
    as_text = [(name.decode(), value.decode()) for name, value in _REQUEST]
    assert PlainEncoder().encode(as_text) == PlainEncoder().encode(_REQUEST)


def test_encode_same_headers_again_same_block_and_no_table() -> None:
    encoder, decoder = PlainEncoder(), Decoder()
    blocks = {encoder.encode(_REQUEST) for _ in range(3)}
    assert len(blocks) == 1
    decoder.decode(blocks.pop())
    assert not decoder.header_table.dynamic_entries


def test_encode_indexed_field_takes_one_byte() -> None:
    assert PlainEncoder().encode([(b":method", b"POST")]) == b"\x83"


def test_encode_after_smaller_table_tells_the_other_side() -> None:
    encoder, decoder = PlainEncoder(), Decoder()
    decoder.max_allowed_table_size = encoder.header_table_size = 256
    for _ in range(3):
        assert decoder.decode(encoder.encode(_REQUEST), raw=True) == _REQUEST
    assert decoder.header_table_size == 256


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.binary(max_size=5000))))
def test_encode_any_pairs_read_back_by_the_library(headers: list[tuple[bytes, bytes]]) -> None:
    decoder = Decoder()
    decoder.max_header_list_size = 1 << 30
    assert decoder.decode(PlainEncoder().encode(headers), raw=True) == headers
