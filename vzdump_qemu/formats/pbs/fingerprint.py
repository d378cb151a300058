"""Fingerprints: SHA-256 values as people read them, of a certificate or of a key.

Owns the texts; what is hashed is decided by `of_certificate` and by `encryption_key`.
Source: PBS formats, sections 2 and 9.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from vzdump_qemu.errors import PbsError
from vzdump_qemu.formats.pbs.layout import DIGEST_BYTES

_SHORT_BYTES = 8
_PAIRS = re.compile(rf"(?:[0-9a-fA-F]{{2}}:){{{DIGEST_BYTES - 1}}}[0-9a-fA-F]{{2}}")
_PLAIN = re.compile(rf"[0-9a-fA-F]{{{2 * DIGEST_BYTES}}}")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """32 bytes; ``str()`` is the normal form, lower-case pairs joined by colons.

    Raises:
        PbsError: not 32 bytes.
    """

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != DIGEST_BYTES:
            raise PbsError(f"fingerprint has {len(self.raw)} bytes instead of {DIGEST_BYTES}")

    @classmethod
    def parse(cls, text: str) -> Fingerprint:
        """Read 32 pairs of hex digits in any case, with colons between all of them or none.

        Raises:
            PbsError: another form.
        """
        if not (_PAIRS.fullmatch(text) or _PLAIN.fullmatch(text)):
            raise PbsError(
                f"not a fingerprint: {text[:100]!a}",
                hint="32 pairs of hex digits joined by colons, as the server's dashboard shows it",
            )
        return cls(bytes.fromhex(text.replace(":", "")))

    @classmethod
    def of_certificate(cls, der: bytes) -> Fingerprint:
        """Fingerprint of a certificate in DER form."""
        return cls(hashlib.sha256(der).digest())

    @property
    def short(self) -> str:
        """The first eight bytes, the form that PBS shows in messages about keys."""
        return self.raw[:_SHORT_BYTES].hex(":")

    def __str__(self) -> str:
        return self.raw.hex(":")
