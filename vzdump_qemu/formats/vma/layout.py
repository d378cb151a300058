"""Layout of VMA version 1: sizes, offsets and packed structures, checked at import.

Owns the numbers only; what may be written or accepted is decided in the sibling modules.
Source: VMA format, sections 1, 2 and 4. All integers are big endian, the length in front of a
config blob or name excepted (little endian).
"""

from __future__ import annotations

import struct
from typing import Final

MAGIC: Final = b"VMA\x00"
EXTENT_MAGIC: Final = b"VMAE"
VERSION: Final = 1

VMA_BLOCK_BYTES: Final = 4096
VMA_CLUSTER_BYTES: Final = 65536
BLOCKS_PER_VMA_CLUSTER: Final = 16
FULL_BLOCK_MASK: Final = 0xFFFF

EXTENT_HEADER_BYTES: Final = 512
SLOTS_PER_EXTENT: Final = 59
# Known writers leave the last slot empty; archives made here shall not differ from theirs.
SLOTS_WRITTEN_PER_EXTENT: Final = 58
EXTENT_BLOCK_COUNT_MAX: Final = SLOTS_PER_EXTENT * BLOCKS_PER_VMA_CLUSTER
VMA_CLUSTER_COUNT_MAX: Final = 1 << 32

FIXED_HEADER_BYTES: Final = 12288
WRITTEN_HEADER_BYTES_MAX: Final = 524288
# Twice what any known writer can emit; a reader holds the header in memory as a whole.
READ_HEADER_BYTES_MAX: Final = 2 * WRITTEN_HEADER_BYTES_MAX
HEADER_ALIGNMENT_BYTES: Final = 512

CONFIG_SLOT_COUNT: Final = 256
DEVICE_SLOT_COUNT: Final = 256
VMA_DEV_ID_MAX: Final = 254
CONFIG_BYTES_MAX: Final = 65535
VMSTATE_NAME: Final = "vmstate"

UUID_BYTES: Final = 16
MD5_BYTES: Final = 16
HEADER_MD5_OFFSET: Final = 32
EXTENT_MD5_OFFSET: Final = 24
CONFIG_NAMES_OFFSET: Final = 2044
CONFIG_DATA_OFFSET: Final = 3068
DEVICE_TABLE_OFFSET: Final = 4096
SLOTS_OFFSET: Final = 40

# magic, version, uuid, ctime, md5, blob_buffer_offset, blob_buffer_size, header_size
HEADER_STRUCT: Final = struct.Struct(">4sI16sq16sIII")
POINTER_STRUCT: Final = struct.Struct(">I")
POINTER_TABLE_BYTES: Final = CONFIG_SLOT_COUNT * POINTER_STRUCT.size
# name pointer, size
DEVICE_STRUCT: Final = struct.Struct(">I4xQ16x")
# magic, reserved, block_count, uuid, md5
EXTENT_STRUCT: Final = struct.Struct(">4sHH16s16s")
LENGTH_STRUCT: Final = struct.Struct("<H")

assert HEADER_STRUCT.size == 60
assert CONFIG_NAMES_OFFSET + POINTER_TABLE_BYTES == CONFIG_DATA_OFFSET
assert CONFIG_DATA_OFFSET + POINTER_TABLE_BYTES == DEVICE_TABLE_OFFSET - 4
assert DEVICE_STRUCT.size == 32
assert DEVICE_TABLE_OFFSET + DEVICE_SLOT_COUNT * DEVICE_STRUCT.size == FIXED_HEADER_BYTES
assert EXTENT_STRUCT.size == SLOTS_OFFSET
assert SLOTS_OFFSET + 8 * SLOTS_PER_EXTENT == EXTENT_HEADER_BYTES
assert VMA_CLUSTER_BYTES == BLOCKS_PER_VMA_CLUSTER * VMA_BLOCK_BYTES
