"""NBD, as far as a client that reads needs it: a codec without I/O.

Source: the public NBD protocol description.
"""

from vzdump_qemu.formats.nbd.block_status import (
    StatusRuns,
    check_status_length,
    decode_status,
    merge_status,
)
from vzdump_qemu.formats.nbd.handshake import NbdExport, NbdHandshake
from vzdump_qemu.formats.nbd.transmission import (
    PendingRead,
    ReplyFront,
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

__all__ = [
    "NbdExport",
    "NbdHandshake",
    "PendingRead",
    "ReplyFront",
    "StatusRuns",
    "check_data_length",
    "check_error_length",
    "check_hole_length",
    "check_status_length",
    "chunk_name",
    "decode_error",
    "decode_reply_front",
    "decode_status",
    "encode_block_status",
    "encode_disconnect",
    "encode_read",
    "merge_status",
    "server_error",
]
