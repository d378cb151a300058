"""Headers as HTTP/2 carries them, written so that none depends on what was sent before.

Owns the writing alone; reading is the library's, as others may use all that there is. What a backup
sends is as good as random (digests, lengths) or a few bytes long: neither Huffman's code nor a
table of earlier headers shortens it by what they cost. No input or output. Source: RFC 7541,
sections 5 and 6.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

from hpack.hpack import Encoder, encode_integer
from hpack.table import HeaderTable

# One bit pattern for each kind of field, and how many bits of a number stand behind it.
_INDEXED: Final = 0x80
_INDEXED_BITS: Final = 7
_NAME_BITS: Final = 4
_TEXT_BITS: Final = 7


class PlainEncoder(Encoder):
    """Names and values as they are, or by their number in the standard's table."""

    def encode(self, headers: Iterable[Any], huffman: bool = False) -> bytes:
        """A block of headers, pairs of bytes or text."""
        if self.header_table.resized:
            # The other side is to be told first, which the library does.
            return super().encode(headers, huffman=False)
        return b"".join([_render_field(name, value) for name, value in headers])


@lru_cache(maxsize=128)
def _render_field(name_text: bytes | str, value_text: bytes | str) -> bytes:
    name, value = _to_bytes(name_text), _to_bytes(value_text)
    name_index, value_indexes = HeaderTable.STATIC_TABLE_MAPPING.get(name, (0, {}))
    if index := value_indexes.get(value, 0):
        field = encode_integer(index, _INDEXED_BITS)
        field[0] |= _INDEXED
        return bytes(field)
    begin = encode_integer(name_index, _NAME_BITS)
    return bytes(begin) + (b"" if name_index else _render_text(name)) + _render_text(value)


def _render_text(text: bytes) -> bytes:
    return bytes(encode_integer(len(text), _TEXT_BITS)) + text


def _to_bytes(text: bytes | str) -> bytes:
    return text.encode() if isinstance(text, str) else text
