"""A bare client for the fake server: HTTP/1.1 by hand, HTTP/2 by `h2`, no rules of its own.

It sends what a test tells it to, right or wrong.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import h2.config
import h2.connection
import h2.events
import h2.settings

from vzdump_qemu.formats.pbs import (
    BackupGroup,
    BackupRef,
    BackupType,
    BlobEncoder,
    CryptMode,
    Manifest,
    ManifestEntry,
    chunk_digest,
    encode_manifest,
)
from vzsim.fakepbs import DEFAULT_TOKEN, FakePbs
from vzsim.fakepbs.streams import Streams

CHUNK_BYTES = 4 << 20
TOKEN_HEADERS = {"Authorization": f"PBSAPIToken={DEFAULT_TOKEN.auth_id}:{DEFAULT_TOKEN.secret}"}
BACKUP_PROTOCOL = "proxmox-backup-protocol-v1"
READER_PROTOCOL = "proxmox-backup-reader-protocol-v1"
TIME_S = 1_700_000_000


@dataclass(frozen=True)
class Answer:
    """What came back; `status` 0 is a stream or connection that ended without a reply."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def value(self) -> Any:
        assert self.status == 200, (self.status, self.body[:200])
        return json.loads(self.body)["data"]


async def http1(
    streams: Streams,
    method: str,
    target: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> Answer:
    """One request on a connection that stays open."""
    reader, writer = streams
    lines = [f"{method} {target} HTTP/1.1", "Host: pbs", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write("\r\n".join((*lines, "", "")).encode() + body)
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError:
        return Answer(0, b"")
    status_line, *rest = head.split("\r\n")
    pairs = (line.split(": ", 1) for line in rest if line)
    found = {name.lower(): value for name, value in pairs}
    content = await reader.readexactly(int(found.get("content-length", "0")))
    return Answer(int(status_line.split(" ")[1]), content, found)


def api(path: str, **values: object) -> str:
    """Target of a call; underscores in names stand for hyphens."""
    query = urlencode({name.replace("_", "-"): value for name, value in values.items()})
    return f"/api2/json/{path}" + (f"?{query}" if query else "")


def _headers(method: str, path: str, values: Mapping[str, object]) -> list[tuple[str, str]]:
    query = urlencode({name.replace("_", "-"): value for name, value in values.items()})
    return [
        (":method", method), (":scheme", "https"), (":authority", "localhost:8007"),
        (":path", f"/{path}" + (f"?{query}" if query else "")),
    ]  # fmt: skip


class RawSession:
    """HTTP/2 behind the upgrade."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._heads: dict[int, dict[str, str]] = {}
        self._bodies: dict[int, bytearray] = {}
        self._moved = asyncio.Event()
        self.goaway: h2.events.ConnectionTerminated | None = None
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(1 << 30)
        self._task = asyncio.get_running_loop().create_task(self._receive())

    async def call(
        self, method: str, path: str, *, body: bytes | None = None, kind: str = "", **values: object
    ) -> Answer:
        """One request; waits for its answer."""
        stream_id = self._h2.get_next_available_stream_id()
        headers = _headers(method, path, values)
        if kind:
            headers.append(("content-type", kind))
        answer = self._answers[stream_id] = asyncio.get_running_loop().create_future()
        self._h2.send_headers(stream_id, headers, end_stream=not body)
        await self._send_body(stream_id, memoryview(body or b""))
        self._flush()
        return await answer

    async def _send_body(self, stream_id: int, body: memoryview) -> None:
        while len(body) and not self._answers[stream_id].done():
            room = min(
                self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size
            )
            if not room:
                self._flush()
                self._moved.clear()
                await self._moved.wait()
                continue
            piece, body = body[:room], body[room:]
            self._h2.send_data(stream_id, bytes(piece), end_stream=not len(body))
            self._flush()

    async def send_json(self, method: str, path: str, value: object) -> Answer:
        return await self.call(
            method, path, body=json.dumps(value).encode(), kind="application/json"
        )

    async def break_off(self, method: str, path: str) -> None:
        """Begin a request, and take it back before its body."""
        stream_id = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream_id, _headers(method, path, {}))
        self._h2.reset_stream(stream_id)
        self._flush()

    async def begin(self, method: str, path: str, **values: object) -> int:
        """One request without a body, nobody waits for its answer; returns its stream."""
        stream_id = self._h2.get_next_available_stream_id()
        self._answers[stream_id] = asyncio.get_running_loop().create_future()
        self._h2.send_headers(stream_id, _headers(method, path, values), end_stream=True)
        self._flush()
        return stream_id

    def reset(self, stream_id: int) -> None:
        """Take a request back."""
        self._h2.reset_stream(stream_id)
        self._flush()

    async def say_goodbye(self) -> None:
        """Announce the end of the connection as HTTP/2 has it; the server then closes."""
        self._h2.close_connection()
        self._flush()
        await self._task

    async def close(self) -> None:
        """End the connection without a word."""
        self.streams[1].close()
        await self._task

    async def _receive(self) -> None:
        self._flush()
        reader = self.streams[0]
        try:
            while data := await reader.read(1 << 18):
                for event in self._h2.receive_data(data):
                    self._take(event)
                self._flush()
        except ConnectionError:
            pass
        self._moved.set()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result(Answer(0, b""))

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived():
                headers = {str(name): str(value) for name, value in event.headers}
                self._heads[event.stream_id] = headers
                self._bodies[event.stream_id] = bytearray()
            case h2.events.DataReceived():
                self._bodies[event.stream_id] += event.data
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                headers = self._heads.pop(event.stream_id)
                body = bytes(self._bodies.pop(event.stream_id))
                answer = Answer(int(headers[":status"]), body, headers)
                self._answers.pop(event.stream_id).set_result(answer)
            case h2.events.StreamReset():
                self._answers.pop(event.stream_id).set_result(Answer(0, b""))
            case h2.events.ConnectionTerminated():
                self.goaway = event
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                pass
        self._moved.set()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data:
            self.streams[1].write(data)

    @property
    def remote_settings(self) -> h2.settings.Settings:
        return self._h2.remote_settings


async def upgrade(
    streams: Streams, target: str, protocol: str, headers: Mapping[str, str] = TOKEN_HEADERS
) -> Answer:
    """Ask for the upgrade on a fresh connection."""
    wanted = {"Connection": "upgrade", "Upgrade": protocol, **headers}
    return await http1(streams, "GET", target, headers=wanted)


def backup_target(path: str = "backup", **values: object) -> str:
    """Target of an upgrade; what is not given is that of VM 100."""
    known: dict[str, object] = {
        "store": "tank", "backup_type": "vm", "backup_id": "100", "backup_time": TIME_S,
    }  # fmt: skip
    return api(path, **{**known, **values})


@asynccontextmanager
async def session(
    pbs: FakePbs,
    path: str = "backup",
    *,
    headers: Mapping[str, str] = TOKEN_HEADERS,
    **values: object,
) -> AsyncIterator[RawSession]:
    """A session on a connection in memory; the server has ended it behind the block."""
    streams, task = pbs.connect()
    protocol = BACKUP_PROTOCOL if path == "backup" else READER_PROTOCOL
    answer = await upgrade(streams, backup_target(path, **values), protocol, headers)
    assert answer.status == 101, answer.text
    opened = RawSession(streams)
    try:
        yield opened
    finally:
        await opened.close()
        await task


async def ask(
    pbs: FakePbs,
    method: str,
    target: str,
    *,
    headers: Mapping[str, str] = TOKEN_HEADERS,
    body: bytes = b"",
) -> Answer:
    """One request on a connection of its own."""
    streams, task = pbs.connect()
    answer = await http1(streams, method, target, headers=headers, body=body)
    streams[1].close()
    await task
    return answer


async def upload_chunk(opened: RawSession, writer_id: int, content: bytes) -> Answer:
    """Encode and upload one chunk, right in all."""
    encoded = BlobEncoder().encode(content).to_bytes()
    return await opened.call(
        "POST", "fixed_chunk", body=encoded, wid=writer_id, size=len(content),
        digest=chunk_digest(content).hex(), encoded_size=len(encoded),
    )  # fmt: skip


async def append(
    opened: RawSession, writer_id: int, digests: Sequence[bytes], offsets: Sequence[int]
) -> Answer:
    value = {
        "wid": writer_id,
        "digest-list": [digest.hex() for digest in digests],
        "offset-list": list(offsets),
    }
    return await opened.send_json("PUT", "fixed_index", value)


async def upload_data_blob(opened: RawSession, name: str, content: bytes) -> ManifestEntry:
    """Upload a small file; returns its entry for the manifest."""
    encoded = BlobEncoder().encode(content).to_bytes()
    answer = await opened.call(
        "POST", "blob", body=encoded, file_name=name, encoded_size=len(encoded)
    )
    assert answer.value is None
    csum = hashlib.sha256(encoded).digest()
    return ManifestEntry(file_name=name, size_bytes=len(encoded), csum=csum)


def cut(content: bytes) -> list[bytes]:
    """A disk in chunks."""
    return [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)]


async def upload_disk(opened: RawSession, name: str, content: bytes) -> ManifestEntry:
    """Upload a whole disk; returns its entry for the manifest."""
    writer_id = (
        await opened.call("POST", "fixed_index", archive_name=name, size=len(content))
    ).value
    chunks = cut(content)
    for chunk in dict.fromkeys(chunks):
        assert (await upload_chunk(opened, writer_id, chunk)).value == chunk_digest(chunk).hex()
    digests = [chunk_digest(chunk) for chunk in chunks]
    offsets = [place * CHUNK_BYTES for place in range(len(chunks))]
    assert (await append(opened, writer_id, digests, offsets)).value is None
    csum = hashlib.sha256(b"".join(digests)).digest()
    closed = await opened.call(
        "POST", "fixed_close", wid=writer_id, chunk_count=len(chunks), size=len(content),
        csum=csum.hex(),
    )  # fmt: skip
    assert closed.value is None
    return ManifestEntry(
        file_name=name, size_bytes=len(content), csum=csum, crypt_mode=CryptMode.NONE
    )


async def upload_manifest(
    opened: RawSession, entries: Sequence[ManifestEntry], backup_time_s: int = TIME_S
) -> None:
    group = BackupGroup(backup_type=BackupType.VM, backup_id="100")
    backup = BackupRef(backup_group=group, backup_time_s=backup_time_s)
    text = encode_manifest(Manifest(backup=backup, entries=tuple(entries)))
    await upload_data_blob(opened, "index.json.blob", text)


async def make_backup(
    pbs: FakePbs, content: bytes, *, backup_time_s: int = TIME_S, **values: object
) -> None:
    """A whole finished backup of one disk and one config."""
    async with session(pbs, backup_time=backup_time_s, **values) as opened:
        config = await upload_data_blob(opened, "qemu-server.conf.blob", b"memory: 512\n")
        disk = await upload_disk(opened, "drive-scsi0.img.fidx", content)
        await upload_manifest(opened, [config, disk], backup_time_s)
        assert (await opened.call("POST", "finish")).value is None
