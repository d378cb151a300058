"""What a server makes of an uploaded chunk or blob before it keeps it.

Owns the checks of length, encoding, digest and sum. The work is pure, so that a server may do it
in a thread. Source: PBS formats, sections 4 and 6.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Protocol, TypeVar

from isal import isal_zlib

from vzdump_qemu.errors import PbsError
from vzdump_qemu.formats.pbs import layout
from vzdump_qemu.formats.pbs.data_blob import BlobDecoder, DataBlob
from vzdump_qemu.formats.pbs.digest import chunk_digest
from vzsim.fakepbs.requests import ApiError, Request

_T = TypeVar("_T")
# Little may stand for much, as for a chunk of zeroes, and comes again with every disk and backup.
_SHORT_BYTES = 256 * 1024


class Offload(Protocol):
    """Where the work is done: in place, or in a thread (`asyncio.to_thread`)."""

    def __call__(self, work: Callable[[], _T], /) -> Awaitable[_T]: ...


async def in_place(work: Callable[[], _T], /) -> _T:
    """Do it here and now, as a simulation needs it."""
    return work()


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadedChunk:
    """A chunk that a client announced.

    Attributes:
        content_bytes: length of the content as announced.
        encoded_bytes: length of the body as announced.
    """

    digest: bytes
    content_bytes: int
    encoded_bytes: int
    request: Request = field(repr=False)

    def check(self) -> bytes:
        """The chunk as it is to be stored, with the right sum.

        Raises:
            ApiError: not what was announced; of an encrypted chunk only the length is known.
        """
        body_bytes = self.request.body_bytes
        if body_bytes > self.encoded_bytes:
            raise ApiError("uploaded chunk is larger than announced.")
        if body_bytes != self.encoded_bytes:
            raise ApiError("uploaded chunk has unexpected size.")
        try:
            parsed = DataBlob.parse(self.request.body)
            if not parsed.kind.is_encrypted:
                self._check_content(self.request.body)
        except PbsError as error:
            raise ApiError(error.message) from error
        crc = isal_zlib.crc32(parsed.payload)
        return self.request.body if crc == parsed.crc else replace(parsed, crc=crc).to_bytes()

    def _check_content(self, encoded: bytes) -> None:
        held = hold(encoded)
        if len(held.content) != self.content_bytes:
            raise ApiError(
                f"detected chunk with wrong length ({self.content_bytes} != {len(held.content)})"
            )
        if held.digest != self.digest:
            raise ApiError("detected chunk with wrong digest.")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldChunk:
    """What a chunk that is not encrypted holds, whatever its sum says."""

    content: bytes = field(repr=False)
    digest: bytes


def hold(encoded: bytes) -> HeldChunk:
    """Decode a chunk that is not encrypted. Raises: PbsError."""
    return _hold_short(encoded) if len(encoded) <= _SHORT_BYTES else _hold(encoded)


def _hold(encoded: bytes) -> HeldChunk:
    # The sum is made anew, so the one that was sent may be wrong.
    parsed = DataBlob.parse(encoded)
    content = BlobDecoder().decode_summed(parsed, content_bytes_max=layout.CHUNK_BYTES_MAX)
    return HeldChunk(content=bytes(content), digest=chunk_digest(content))


@lru_cache(maxsize=16)
def _hold_short(encoded: bytes) -> HeldChunk:
    return _hold(encoded)


def check_data_blob(request: Request, encoded_bytes: int) -> bytes:
    """An uploaded blob as it is to be stored. Raises: ApiError."""
    if request.body_bytes != encoded_bytes:
        raise ApiError(f"got blob with unexpected length ({encoded_bytes} != {request.body_bytes})")
    try:
        DataBlob.parse(request.body).check_crc()
    except PbsError as error:
        raise ApiError(error.message) from error
    return request.body
