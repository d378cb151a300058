"""Data blobs: how config files and chunks are compressed, encrypted and summed for a server.

Owns the encoding in both directions and its bounds; which content is worth encoding, and where it
goes, is decided by the stores. Source: PBS formats, section 6. The cyclic sum is there against
damage alone; it covers neither initialisation vector nor tag, which the cipher checks itself.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass, field
from typing import Final

import zstandard

# Five times as fast as the standard library's, which would cost a tenth of an upload.
from isal import isal_zlib

from vzdump_qemu.errors import PbsCorrupt, PbsError, PbsKeyError
from vzdump_qemu.formats.pbs import layout
from vzdump_qemu.formats.pbs.digest import chunk_digest
from vzdump_qemu.formats.pbs.encryption_key import CryptMode, EncryptionKey

_ZSTD_LEVEL: Final = 1
# The writers of PBS need 512 KiB; no library's default level asks for more than this.
_ZSTD_WINDOW_BYTES_MAX: Final = 32 << 20
# Frame header with every field, one empty block, checksum.
_EMPTY_FRAME_BYTES_MAX: Final = 18 + 3 + 4


class BlobKind(enum.Enum):
    """Which of the four encodings, by magic number."""

    PLAIN = layout.PLAIN_MAGIC
    COMPRESSED = layout.COMPRESSED_MAGIC
    ENCRYPTED = layout.ENCRYPTED_MAGIC
    ENCRYPTED_COMPRESSED = layout.ENCRYPTED_COMPRESSED_MAGIC

    @property
    def is_encrypted(self) -> bool:
        return self in (BlobKind.ENCRYPTED, BlobKind.ENCRYPTED_COMPRESSED)

    @property
    def is_compressed(self) -> bool:
        return self in (BlobKind.COMPRESSED, BlobKind.ENCRYPTED_COMPRESSED)

    @property
    def header_bytes(self) -> int:
        layout_struct = layout.ENCRYPTED_STRUCT if self.is_encrypted else layout.PLAIN_STRUCT
        return layout_struct.size


@dataclass(frozen=True, slots=True, kw_only=True)
class DataBlob:
    """An encoded blob in its parts, none of them copied.

    Attributes:
        crc: cyclic sum of the payload as the header has it.
        iv: initialisation vector, empty unless encrypted.
        tag: authentication tag, empty unless encrypted.
        payload: everything behind the header.
    """

    kind: BlobKind
    crc: int
    iv: bytes
    tag: bytes
    payload: layout.Buffer = field(repr=False)

    @classmethod
    def parse(
        cls, encoded: layout.Buffer, *, encoded_bytes_max: int = layout.ENCODED_BYTES_MAX
    ) -> DataBlob:
        """Take an encoded blob apart; `payload` is a view of it.

        Raises:
            PbsCorrupt: too short, too long, or no blob at all.
        """
        encoded_bytes = len(encoded)
        if encoded_bytes < layout.PLAIN_STRUCT.size:
            raise PbsCorrupt(f"blob too small ({encoded_bytes} bytes).")
        if encoded_bytes > encoded_bytes_max:
            raise PbsCorrupt(f"blob too large ({encoded_bytes} bytes > {encoded_bytes_max}).")
        view = memoryview(encoded)
        magic, crc = layout.PLAIN_STRUCT.unpack_from(view)
        try:
            kind = BlobKind(magic)
        except ValueError as error:
            raise PbsCorrupt("unable to parse raw blob - wrong magic") from error
        if not kind.is_encrypted:
            return cls(kind=kind, crc=crc, iv=b"", tag=b"", payload=view[kind.header_bytes :])
        if encoded_bytes < kind.header_bytes:
            raise PbsCorrupt(f"encrypted blob too small ({encoded_bytes} bytes).")
        _, _, iv, tag = layout.ENCRYPTED_STRUCT.unpack_from(view)
        return cls(kind=kind, crc=crc, iv=iv, tag=tag, payload=view[kind.header_bytes :])

    @property
    def encoded_bytes(self) -> int:
        """Length of the blob with its header."""
        return self.kind.header_bytes + len(self.payload)

    @property
    def header(self) -> bytes:
        """The bytes in front of the payload."""
        if self.kind.is_encrypted:
            return layout.ENCRYPTED_STRUCT.pack(self.kind.value, self.crc, self.iv, self.tag)
        return layout.PLAIN_STRUCT.pack(self.kind.value, self.crc)

    def to_bytes(self) -> bytes:
        """The encoded blob in one piece, a copy."""
        return b"".join((self.header, self.payload))

    def csum(self) -> bytes:
        """SHA-256 of the encoded blob, as a manifest lists it."""
        state = hashlib.sha256(self.header)
        state.update(self.payload)
        return state.digest()

    def check_crc(self) -> None:
        """Raise PbsCorrupt unless the payload has the cyclic sum of the header."""
        if isal_zlib.crc32(self.payload) != self.crc:
            raise PbsCorrupt("Data blob has wrong CRC checksum.")


class BlobEncoder:
    """Encodes contents, one after the other.

    Have one for each thread: two at once inside the same compressor end the process.

    Args:
        key: encrypts everything if given.
        compress: whether to try; what would not shrink is kept as it is.
    """

    __slots__ = ("_compressor", "_key")

    def __init__(self, *, key: EncryptionKey | None = None, compress: bool = True) -> None:
        self._key = key
        self._compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL) if compress else None

    def encode(
        self,
        content: layout.Buffer,
        *,
        iv: bytes = b"",
        content_bytes_max: int = layout.CONTENT_BYTES_MAX,
    ) -> DataBlob:
        """Encode one content, which is not copied if it stays plain: do not change it after.

        Args:
            iv: 16 fresh bytes of chance where there is a key, else unused.

        Raises:
            PbsError: the content is over the limit.
            PbsKeyError: an initialisation vector of another length.
        """
        view = memoryview(content).cast("B")
        if len(view) > content_bytes_max:
            raise PbsError(f"data blob too large ({len(view)} bytes > {content_bytes_max}).")
        payload, is_compressed = self._compressed(view)
        if self._key is None:
            kind = BlobKind.COMPRESSED if is_compressed else BlobKind.PLAIN
            return DataBlob(
                kind=kind, crc=isal_zlib.crc32(payload), iv=b"", tag=b"", payload=payload
            )
        kind = BlobKind.ENCRYPTED_COMPRESSED if is_compressed else BlobKind.ENCRYPTED
        tag, ciphertext = self._key.seal(payload, iv)
        return DataBlob(
            kind=kind, crc=isal_zlib.crc32(ciphertext), iv=bytes(iv), tag=tag, payload=ciphertext
        )

    def _compressed(self, content: memoryview) -> tuple[layout.Buffer, bool]:
        if self._compressor is None or not len(content):
            return content, False
        compressed = self._compressor.compress(content)
        # Servers of version 3 keep equal length plain, those of version 4 compressed.
        if len(compressed) < len(content):
            return compressed, True
        return content, False


class BlobDecoder:
    """Decodes blobs, one after the other.

    Have one for each thread: two at once inside the same decompressor end the process.

    Args:
        key: needed for what is encrypted; the rest is read with or without.
    """

    __slots__ = ("_decompressor", "_key")

    def __init__(self, *, key: EncryptionKey | None = None) -> None:
        self._key = key
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES_MAX)

    def decode(
        self,
        encoded: layout.Buffer | DataBlob,
        *,
        content_bytes_max: int = layout.CONTENT_BYTES_MAX,
    ) -> layout.Buffer:
        """Content of a blob; a view of `encoded` if that is plain.

        Raises:
            PbsCorrupt: no blob, a wrong sum, or content that does not decompress in the limit.
            PbsKeyError: encrypted, and there is no key or another one is needed.
        """
        parsed = encoded if isinstance(encoded, DataBlob) else DataBlob.parse(encoded)
        parsed.check_crc()
        return self.decode_summed(parsed, content_bytes_max=content_bytes_max)

    def decode_summed(
        self, parsed: DataBlob, *, content_bytes_max: int = layout.CONTENT_BYTES_MAX
    ) -> layout.Buffer:
        """As `decode`, for a blob whose sum was checked before, or does not matter."""
        payload = parsed.payload
        if parsed.kind.is_encrypted:
            if self._key is None:
                raise PbsKeyError("missing key - data is encrypted")
            payload = self._key.open(payload, iv=parsed.iv, tag=parsed.tag)
        if parsed.kind.is_compressed:
            return self._decompressed(payload, content_bytes_max)
        if len(payload) > content_bytes_max:
            raise _too_much(content_bytes_max)
        return payload

    def decode_chunk(
        self,
        encoded: layout.Buffer,
        *,
        digest: bytes,
        content_bytes: int,
        crypt_mode: CryptMode,
    ) -> layout.Buffer:
        """Content of a chunk, proved to be the one that an index names.

        Args:
            digest: of the chunk in the index.
            content_bytes: length that the index gives it; nothing longer is decompressed.
            crypt_mode: of the file that the index is.

        Raises:
            PbsCorrupt: damaged, or the content of another chunk, or not in that crypt mode.
            PbsKeyError: encrypted, and there is no key or another one is needed.
        """
        parsed = DataBlob.parse(encoded)
        if parsed.kind.is_encrypted is not crypt_mode.is_encrypted:
            raise PbsCorrupt("Index and chunk CryptMode don't match.")
        content = self.decode(parsed, content_bytes_max=content_bytes)
        if len(content) != content_bytes:
            raise PbsCorrupt(
                f"detected chunk with wrong length ({content_bytes} != {len(content)})"
            )
        key = self._key if crypt_mode.is_encrypted else None
        if chunk_digest(content, key) != digest:
            raise PbsCorrupt("detected chunk with wrong digest.")
        return content

    def _decompressed(self, payload: layout.Buffer, content_bytes_max: int) -> bytes:
        try:
            content_bytes = zstandard.get_frame_parameters(payload).content_size
            if content_bytes == zstandard.CONTENTSIZE_UNKNOWN:
                return self._decompressor.decompress(
                    payload, max_output_size=content_bytes_max, allow_extra_data=False
                )
            # The library allocates what the frame claims, whatever limit it is given.
            if content_bytes > content_bytes_max:
                raise _too_much(content_bytes_max)
            if not content_bytes:
                return self._empty(payload)
            return self._decompressor.decompress(payload, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise PbsCorrupt(
                f"data does not decompress to {content_bytes_max} bytes or less: {error}"
            ) from error

    def _empty(self, payload: layout.Buffer) -> bytes:
        """Content of a frame that claims to have none: the library takes its word for it."""
        stream = self._decompressor.decompressobj()
        if (
            len(payload) > _EMPTY_FRAME_BYTES_MAX
            or stream.decompress(payload)
            or not stream.eof
            or stream.unused_data
        ):
            raise PbsCorrupt("data is no single zstd frame")
        return b""


def _too_much(content_bytes_max: int) -> PbsCorrupt:
    return PbsCorrupt(f"data is longer than {content_bytes_max} bytes")
