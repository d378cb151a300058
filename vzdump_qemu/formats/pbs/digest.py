"""Digests: the 32 bytes that name a chunk.

Owns how they are made and written; where chunks lie is the server's. Source: PBS formats,
sections 1 and 6.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache

from vzdump_qemu.errors import PbsError
from vzdump_qemu.formats.pbs import layout
from vzdump_qemu.formats.pbs.encryption_key import EncryptionKey

_TEXT = re.compile(rf"[a-f0-9]{{{2 * layout.DIGEST_BYTES}}}")


def chunk_digest(content: layout.Buffer, key: EncryptionKey | None = None) -> bytes:
    """Digest of the plain content of a chunk; with a key if the chunk is to be encrypted."""
    return hashlib.sha256(content).digest() if key is None else key.chunk_digest(content)


def zero_chunk_digest(
    key: EncryptionKey | None = None, *, chunk_bytes: int = layout.CHUNK_BYTES
) -> bytes:
    """Digest of a whole chunk of zeroes."""
    state = _zero_state(chunk_bytes).copy()
    return state.digest() if key is None else key.end_chunk_digest(state)


@cache
def _zero_state(chunk_bytes: int) -> hashlib._Hash:
    return hashlib.sha256(bytes(chunk_bytes))


def parse_digest(text: str) -> bytes:
    """Read 64 hex digits, lower case alone as the servers do.

    Raises:
        PbsError: another form.
    """
    if not _TEXT.fullmatch(text):
        raise PbsError(f"not a digest: {text[:80]!a}")
    return bytes.fromhex(text)
