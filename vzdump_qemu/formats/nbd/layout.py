"""Layout of the NBD protocol: numbers and packed structures of what a reading client needs.

Owns the numbers only. All integers are big endian. Source: the public NBD protocol description.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from vzdump_qemu.units import KIB, MIB

GREETING_MAGIC: Final = 0x4E42444D41474943
OPTION_MAGIC: Final = 0x49484156454F5054
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
CHUNK_MAGIC: Final = 0x668E33EF

# magic, option magic, handshake flags
GREETING_STRUCT: Final = struct.Struct(">QQH")
# magic, option, length
OPTION_STRUCT: Final = struct.Struct(">QII")
# magic, option, reply type, length
OPTION_REPLY_STRUCT: Final = struct.Struct(">QIII")
# magic, command flags, command, cookie, offset, length
REQUEST_STRUCT: Final = struct.Struct(">IHHQQI")
# magic, error, cookie
SIMPLE_REPLY_STRUCT: Final = struct.Struct(">IIQ")
# magic, flags, chunk type, cookie; the length follows as a number of its own
CHUNK_STRUCT: Final = struct.Struct(">IHHQ")
# info type, size, transmission flags
INFO_EXPORT_STRUCT: Final = struct.Struct(">HQH")
# info type, smallest, preferred and largest block
INFO_BLOCK_SIZE_STRUCT: Final = struct.Struct(">HIII")
# offset, length
HOLE_STRUCT: Final = struct.Struct(">QI")
# error, length of the text
ERROR_STRUCT: Final = struct.Struct(">IH")
NUMBER_STRUCT: Final = struct.Struct(">I")
OFFSET_STRUCT: Final = struct.Struct(">Q")
SHORT_STRUCT: Final = struct.Struct(">H")

# A simple reply and the front of a chunk can be told apart after this many bytes.
REPLY_FRONT_BYTES: Final = 16
assert GREETING_STRUCT.size == 18
assert OPTION_STRUCT.size == 16
assert OPTION_REPLY_STRUCT.size == 20
assert REQUEST_STRUCT.size == 28
assert SIMPLE_REPLY_STRUCT.size == CHUNK_STRUCT.size == REPLY_FRONT_BYTES
assert INFO_EXPORT_STRUCT.size == 12
assert INFO_BLOCK_SIZE_STRUCT.size == 14

HANDSHAKE_FIXED_NEWSTYLE: Final = 1
HANDSHAKE_NO_ZEROES: Final = 2
TRANSMISSION_HAS_FLAGS: Final = 1
TRANSMISSION_SEND_DF: Final = 1 << 7
TRANSMISSION_CAN_MULTI_CONN: Final = 1 << 8
REQUEST_FLAG_DF: Final = 1 << 2
CHUNK_FLAG_DONE: Final = 1

ALLOCATION_CONTEXT: Final = "base:allocation"
BITMAP_CONTEXT_PREFIX: Final = "qemu:dirty-bitmap:"
ALLOCATION_ZERO: Final = 2
BITMAP_DIRTY: Final = 1

# The protocol's own limit of names and texts.
TEXT_BYTES_MAX: Final = 4096
# More than any option reply has to say; a longer one is not from a server that means well.
OPTION_REPLY_BYTES_MAX: Final = 64 * KIB
OPTION_REPLY_COUNT_MAX: Final = 64
# No server serves longer reads by default.
REQUEST_BYTES_MAX: Final = 32 * MIB
# Eight times what QEMU sends at most.
STATUS_BYTES_MAX: Final = 8 * MIB
DISK_BYTES_MAX: Final = (1 << 63) - 1


class Option(enum.IntEnum):
    """Options of the negotiation."""

    GO = 7
    STRUCTURED_REPLY = 8
    SET_META_CONTEXT = 10


class OptionReply(enum.IntEnum):
    """Types of option replies; those with the highest bit are errors."""

    ACK = 1
    INFO = 3
    META_CONTEXT = 4
    UNSUPPORTED = 0x80000001
    POLICY = 0x80000002
    INVALID = 0x80000003
    PLATFORM = 0x80000004
    TLS_REQUIRED = 0x80000005
    UNKNOWN = 0x80000006
    SHUTDOWN = 0x80000007
    BLOCK_SIZE_REQUIRED = 0x80000008
    TOO_BIG = 0x80000009


OPTION_ERROR_FLAG: Final = 1 << 31


class Info(enum.IntEnum):
    """Information about an export."""

    EXPORT = 0
    BLOCK_SIZE = 3


class Command(enum.IntEnum):
    """Commands of a client that only reads."""

    READ = 0
    DISCONNECT = 2
    BLOCK_STATUS = 7


class ChunkType(enum.IntEnum):
    """Types of chunks of a structured reply; those with the highest bit are errors."""

    NONE = 0
    DATA = 1
    HOLE = 2
    BLOCK_STATUS = 5
    ERROR = 0x8001
    ERROR_OFFSET = 0x8002


CHUNK_ERROR_FLAG: Final = 1 << 15
