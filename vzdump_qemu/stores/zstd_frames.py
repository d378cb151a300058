"""Walks the frames of a zstd file, to know whether it ends where a frame does.

The decompressor of the library gives what it has when its input ends, cut short or not. Owns frame
and block headers only; everything inside a block is the decompressor's. Source: RFC 8878, 3.1.
"""

from __future__ import annotations

from typing import Final

from vzdump_qemu.errors import VmaError

ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_SKIPPABLE_MAGIC: Final = b"\x2a\x4d\x18"
_RLE_BLOCK: Final = 1
_RESERVED_BLOCK: Final = 3
_DICTIONARY_ID_BYTES: Final = (0, 1, 2, 4)
_CONTENT_SIZE_BYTES: Final = (0, 2, 4, 8)


class ZstdFrameWalk:
    """Follows the compressed bytes as they pass.

    `finish` tells whether they may end here.
    """

    def __init__(self) -> None:
        self._held = b""
        self._skip_bytes = 0
        self._in_blocks = False
        self._checksum_bytes = 0
        self._frame_count = 0

    def feed(self, data: bytes) -> None:
        """Follow the next compressed bytes.

        Raises:
            VmaError: something that is no frame where one should begin.
        """
        at = min(self._skip_bytes, len(data))
        self._skip_bytes -= at
        if self._skip_bytes:
            return
        view = self._held + data[at:] if self._held else data
        at = 0 if self._held else at
        while True:
            used = self._block(view, at) if self._in_blocks else self._frame(view, at)
            if not used:
                break
            at += used + self._skip_bytes
            if at > len(view):
                self._skip_bytes, at = at - len(view), len(view)
                break
            self._skip_bytes = 0
        self._held = view[at:]

    def finish(self) -> None:
        """Raise VmaError unless the input ended right behind a frame."""
        if self._skip_bytes or self._held or self._in_blocks or not self._frame_count:
            raise VmaError("zstd file is cut short")

    def _frame(self, view: bytes, at: int) -> int:
        """Length of the frame header at ``at``, or 0 if it is not all there."""
        magic = view[at : at + 4]
        if len(magic) < 4:
            if magic and not self._may_begin(magic):
                raise VmaError("zstd file is followed by other data")
            return 0
        if magic[1:] == _SKIPPABLE_MAGIC and magic[0] & 0xF0 == 0x50:
            if len(view) < at + 8:
                return 0
            self._skip_bytes = int.from_bytes(view[at + 4 : at + 8], "little")
            return 8
        if magic != ZSTD_MAGIC:
            raise VmaError("zstd file is followed by other data")
        if len(view) < at + 5:
            return 0
        descriptor = view[at + 4]
        single_segment = bool(descriptor & 0x20)
        size_bytes = _CONTENT_SIZE_BYTES[descriptor >> 6] or int(single_segment)
        length = 5 + (not single_segment) + _DICTIONARY_ID_BYTES[descriptor & 3] + size_bytes
        if len(view) < at + length:
            return 0
        self._checksum_bytes = 4 if descriptor & 4 else 0
        self._in_blocks = True
        self._frame_count += 1
        return length

    def _block(self, view: bytes, at: int) -> int:
        """Length of the block header at ``at``, or 0 if it is not all there."""
        if len(view) < at + 3:
            return 0
        header = int.from_bytes(view[at : at + 3], "little")
        kind = header >> 1 & 3
        if kind == _RESERVED_BLOCK:
            raise VmaError("zstd file is damaged")
        self._skip_bytes = 1 if kind == _RLE_BLOCK else header >> 3
        if header & 1:
            self._skip_bytes += self._checksum_bytes
            self._in_blocks = False
        return 3

    @staticmethod
    def _may_begin(magic: bytes) -> bool:
        skippable = magic[0] & 0xF0 == 0x50 and _SKIPPABLE_MAGIC.startswith(magic[1:])
        return skippable or ZSTD_MAGIC.startswith(magic)
