"""The NBD negotiation of a reading client, without I/O: bytes in, bytes out, an export at the end.

Owns: fixed newstyle greeting, structured replies, metadata contexts, ``NBD_OPT_GO``. A server
without structured replies or contexts is accepted; what it cannot say is then not asked for.
Leaves the transmission phase to `transmission`. Source: the public NBD protocol description.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from vzdump_qemu.errors import DiskReadError
from vzdump_qemu.formats.nbd import layout
from vzdump_qemu.formats.nbd.layout import Info, Option, OptionReply

_ERROR_TEXTS = {
    OptionReply.UNSUPPORTED: "the server does not know the request",
    OptionReply.POLICY: "the server's policy forbids it",
    OptionReply.INVALID: "the server calls the request invalid",
    OptionReply.PLATFORM: "the server's platform does not offer it",
    OptionReply.TLS_REQUIRED: "the server demands TLS",
    OptionReply.UNKNOWN: "the server has no such export",
    OptionReply.SHUTDOWN: "the server is shutting down",
    OptionReply.BLOCK_SIZE_REQUIRED: "the server demands another block size",
    OptionReply.TOO_BIG: "the request is too big for the server",
}
_BLOCK_BYTES_MAX = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class NbdExport:
    """What a server said of the export that was opened.

    Attributes:
        can_multi_conn: several connections see one content.
        has_structured_replies: replies come in chunks.
        can_df: a read may ask for one chunk with all of it.
        block_bytes_min: offsets and lengths of requests are multiples of it.
        request_bytes_max: longest read.
        allocation_context_id: number under which block status tells zeroes, or None.
        bitmap_context_id: number under which it tells the dirty bitmap, or None.
    """

    size_bytes: int
    can_multi_conn: bool
    has_structured_replies: bool
    can_df: bool
    block_bytes_min: int
    request_bytes_max: int
    allocation_context_id: int | None
    bitmap_context_id: int | None


class NbdHandshake:
    """The client's side of one negotiation.

    Give exactly `needed_bytes` at a time and send what comes back, until `export` is there.

    Args:
        export_name: at most 4096 bytes.
        bitmap_name: dirty bitmap that the export must have; empty for none.

    Attributes:
        needed_bytes: how much to give next, at most 64 KiB; 0 once `export` is there.
        export: set at the end.
    """

    def __init__(self, export_name: str, *, bitmap_name: str = "") -> None:
        self._export_name = export_name
        self._bitmap_name = bitmap_name
        self._outgoing = bytearray()
        self._reply_count = 0
        self.export: NbdExport | None = None
        if len(export_name.encode()) > layout.TEXT_BYTES_MAX:
            raise DiskReadError(f"NBD export name has over {layout.TEXT_BYTES_MAX} bytes")
        self._steps = self._negotiate()
        self.needed_bytes = next(self._steps)

    def give(self, raw: bytes) -> bytes:
        """Take what the server sent and return what to send now, perhaps nothing.

        Raises:
            DiskReadError: the server refused, lacks the bitmap, or broke the protocol.
        """
        try:
            self.needed_bytes = self._steps.send(raw)
        except StopIteration as end:
            self.export = end.value
            self.needed_bytes = 0
        outgoing = bytes(self._outgoing)
        self._outgoing.clear()
        return outgoing

    def _negotiate(self) -> Generator[int, bytes, NbdExport]:
        raw = yield layout.GREETING_STRUCT.size
        magic, option_magic, flags = layout.GREETING_STRUCT.unpack(raw)
        if magic != layout.GREETING_MAGIC or option_magic != layout.OPTION_MAGIC:
            raise DiskReadError("got a wrong greeting instead of NBD's")
        if not flags & layout.HANDSHAKE_FIXED_NEWSTYLE:
            raise DiskReadError("NBD server does not know the fixed newstyle negotiation")
        flags &= layout.HANDSHAKE_FIXED_NEWSTYLE | layout.HANDSHAKE_NO_ZEROES
        self._outgoing += layout.NUMBER_STRUCT.pack(flags)
        is_structured = yield from self._ask_structured()
        allocation_id, bitmap_id = None, None
        if is_structured:
            allocation_id, bitmap_id = yield from self._ask_contexts()
        if self._bitmap_name and bitmap_id is None:
            raise DiskReadError(f"NBD server does not serve the bitmap '{self._bitmap_name}'")
        return (
            yield from self._go(
                is_structured=is_structured, allocation_id=allocation_id, bitmap_id=bitmap_id
            )
        )

    def _ask_structured(self) -> Generator[int, bytes, bool]:
        self._put_option(Option.STRUCTURED_REPLY, b"")
        kind, _ = yield from self._read_reply(Option.STRUCTURED_REPLY)
        return kind == OptionReply.ACK

    def _ask_contexts(self) -> Generator[int, bytes, tuple[int | None, int | None]]:
        wanted = [layout.ALLOCATION_CONTEXT]
        if self._bitmap_name:
            wanted.append(layout.BITMAP_CONTEXT_PREFIX + self._bitmap_name)
        parts = [_text(self._export_name), layout.NUMBER_STRUCT.pack(len(wanted))]
        self._put_option(
            Option.SET_META_CONTEXT, b"".join([*parts, *(_text(name) for name in wanted)])
        )
        ids: dict[str, int] = {}
        while True:
            kind, data = yield from self._read_reply(Option.SET_META_CONTEXT)
            if kind != OptionReply.META_CONTEXT:
                break
            if len(data) < layout.NUMBER_STRUCT.size:
                raise DiskReadError("NBD server sent a short metadata context")
            name = data[layout.NUMBER_STRUCT.size :].decode(errors="replace")
            ids[name] = layout.NUMBER_STRUCT.unpack_from(data)[0]
        if kind == OptionReply.UNKNOWN:
            raise self._refusal(kind, data)
        if kind != OptionReply.ACK:
            ids.clear()
        return ids.get(wanted[0]), ids.get(wanted[-1]) if self._bitmap_name else None

    def _go(
        self, *, is_structured: bool, allocation_id: int | None, bitmap_id: int | None
    ) -> Generator[int, bytes, NbdExport]:
        wishes = (Info.BLOCK_SIZE,)
        data = _text(self._export_name) + layout.SHORT_STRUCT.pack(len(wishes))
        data += b"".join(layout.SHORT_STRUCT.pack(wish) for wish in wishes)
        self._put_option(Option.GO, data)
        size_bytes: int | None = None
        flags = 0
        block_min, block_max = 1, layout.REQUEST_BYTES_MAX
        while True:
            kind, data = yield from self._read_reply(Option.GO)
            if kind == OptionReply.ACK:
                break
            if kind != OptionReply.INFO:
                raise self._refusal(kind, data)
            info = layout.SHORT_STRUCT.unpack_from(data)[0] if len(data) >= 2 else None
            if info == Info.EXPORT and len(data) == layout.INFO_EXPORT_STRUCT.size:
                _, size_bytes, flags = layout.INFO_EXPORT_STRUCT.unpack(data)
            elif info == Info.BLOCK_SIZE and len(data) == layout.INFO_BLOCK_SIZE_STRUCT.size:
                _, block_min, _, block_max = layout.INFO_BLOCK_SIZE_STRUCT.unpack(data)
            elif info in (None, Info.EXPORT, Info.BLOCK_SIZE):
                raise DiskReadError("NBD server sent malformed information about the export")
        if size_bytes is None or size_bytes > layout.DISK_BYTES_MAX:
            raise DiskReadError("NBD server told no usable size of the export")
        is_power = block_min > 0 and not block_min & (block_min - 1)
        if not is_power or block_min > _BLOCK_BYTES_MAX or block_max < _BLOCK_BYTES_MAX:
            raise DiskReadError(f"NBD server wants blocks of {block_min} to {block_max} bytes")
        return NbdExport(
            size_bytes=size_bytes,
            can_multi_conn=bool(flags & layout.TRANSMISSION_CAN_MULTI_CONN),
            has_structured_replies=is_structured,
            can_df=is_structured and bool(flags & layout.TRANSMISSION_SEND_DF),
            block_bytes_min=block_min,
            request_bytes_max=min(block_max, layout.REQUEST_BYTES_MAX),
            allocation_context_id=allocation_id,
            bitmap_context_id=bitmap_id,
        )

    def _put_option(self, option: Option, data: bytes) -> None:
        self._outgoing += layout.OPTION_STRUCT.pack(layout.OPTION_MAGIC, option, len(data)) + data

    def _read_reply(self, wanted: Option) -> Generator[int, bytes, tuple[int, bytes]]:
        self._reply_count += 1
        if self._reply_count > layout.OPTION_REPLY_COUNT_MAX:
            raise DiskReadError("NBD server does not come to an end with its option replies")
        raw = yield layout.OPTION_REPLY_STRUCT.size
        magic, option, kind, length = layout.OPTION_REPLY_STRUCT.unpack(raw)
        if magic != layout.OPTION_REPLY_MAGIC or option != wanted:
            raise DiskReadError("NBD server sent something else than the reply to an option")
        if length > layout.OPTION_REPLY_BYTES_MAX:
            raise DiskReadError(f"NBD server announced an option reply of {length} bytes")
        data = b""
        if length:
            data = yield length
        return kind, data

    def _refusal(self, kind: int, data: bytes) -> DiskReadError:
        reason = f"option reply {kind:#x}"
        if kind in OptionReply.__members__.values():
            reason = _ERROR_TEXTS.get(OptionReply(kind), reason)
        said = one_line(data)
        return DiskReadError(
            f"NBD export '{self._export_name}' cannot be opened: {reason}"
            + (f" ({said})" if said else "")
        )


def one_line(data: bytes) -> str:
    """A server's text, made fit for one line of a log."""
    text = data[: layout.TEXT_BYTES_MAX].decode(errors="replace")
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def _text(text: str) -> bytes:
    raw = text.encode()
    return layout.NUMBER_STRUCT.pack(len(raw)) + raw
