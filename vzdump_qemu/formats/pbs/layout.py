"""Layout of the PBS files: magic numbers, sizes and packed structures, checked at import.

Owns the numbers only; what may be written or accepted is decided in the sibling modules.
Source: PBS formats, sections 1, 4, 6 and 7. All integers are little endian.
"""

from __future__ import annotations

import struct
from typing import Final, TypeAlias

from vzdump_qemu.units import KIB, MIB, TIB

Buffer: TypeAlias = bytes | bytearray | memoryview

DIGEST_BYTES: Final = 32
CHUNK_BYTES: Final = 4 * MIB
INDEX_CHUNK_BYTES_MIN: Final = 64 * KIB
# A chunk of a dynamic index may be this long, and no upload may hold more.
CHUNK_BYTES_MAX: Final = 16 * MIB
CONTENT_BYTES_MAX: Final = 128 * MIB
ENCODED_BYTES_MAX: Final = CONTENT_BYTES_MAX + 44
# What a server takes in one upload: the largest chunk and the longest header.
UPLOAD_BYTES_MAX: Final = CHUNK_BYTES_MAX + 44

# Each is the first 8 bytes of the SHA-256 of a sentence, see the tests.
PLAIN_MAGIC: Final = bytes.fromhex("42ab3807be8370a1")
COMPRESSED_MAGIC: Final = bytes.fromhex("31b958426fb6a37f")
ENCRYPTED_MAGIC: Final = bytes.fromhex("7b6785be222d4cf0")
ENCRYPTED_COMPRESSED_MAGIC: Final = bytes.fromhex("e6591bbf0bbfd80b")
FIXED_INDEX_MAGIC: Final = bytes.fromhex("2f7f41ed91fd0fcd")
DYNAMIC_INDEX_MAGIC: Final = bytes.fromhex("1c914ea519bab3cd")

KEY_BYTES: Final = 32
IV_BYTES: Final = 16
TAG_BYTES: Final = 16
UUID_BYTES: Final = 16

INDEX_HEADER_BYTES: Final = 4096
# Disks larger than any storage of today; an index of this size takes 512 MiB of memory.
DISK_BYTES_MAX: Final = 64 * TIB
# Of the largest disk; one in smaller chunks than servers make of disks is shorter accordingly.
INDEX_BYTES_MAX: Final = INDEX_HEADER_BYTES + DISK_BYTES_MAX // CHUNK_BYTES * DIGEST_BYTES
DYNAMIC_RECORD_COUNT_MAX: Final = 16 * MIB

# magic, crc32
PLAIN_STRUCT: Final = struct.Struct("<8sI")
# magic, crc32, initialisation vector, tag
ENCRYPTED_STRUCT: Final = struct.Struct("<8sI16s16s")
# magic, uuid, ctime, index checksum, image size, chunk size (the last two of .fidx only)
INDEX_STRUCT: Final = struct.Struct("<8s16sq32sQQ")
# end offset, digest
DYNAMIC_RECORD_STRUCT: Final = struct.Struct("<Q32s")

assert PLAIN_STRUCT.size == 12
assert ENCRYPTED_STRUCT.size == PLAIN_STRUCT.size + IV_BYTES + TAG_BYTES == 44
assert INDEX_STRUCT.size == 80
assert DYNAMIC_RECORD_STRUCT.size == 40
