"""Ten thousand spoiled conversations: each ends in a value or in a typed error, and soon.

Three ways to spoil what a server says to a client that logs in, backs up twice, lists and reads
back: bytes of the connection anywhere (heads of HTTP/1.1, frames); whole replies, well framed, with
other statuses and texts; and stored files (manifest, index, chunks, blobs) between two backups.
``make test`` tries a few dozen of each; ten thousand of each, half an hour::

    MUTATION_COUNT=10000 .venv/bin/python -m pytest tests/stores/pbs/test_mutated_replies.py
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.stores.pbs.running_server import CONFIGS, PatternDisk, SkippingClock, backup_at
from vzdump_qemu.errors import BackupError
from vzdump_qemu.formats.pbs import Namespace, Repository
from vzdump_qemu.formats.pbs.repository import AuthId
from vzdump_qemu.ports import DiskOrigin
from vzdump_qemu.stores.pbs import (
    BackupReader,
    DatastoreCalls,
    PbsDisk,
    PbsEndpoint,
    PbsUploader,
    Secret,
    Timeouts,
    TlsTrust,
    make_login,
)
from vzsim.fakepbs import (
    DEFAULT_USER,
    FakePbs,
    Fault,
    FaultKind,
    PbsConfig,
    PbsSurroundings,
    memory_streams,
)

pytestmark = pytest.mark.slow

MUTATION_COUNT = int(os.environ.get("MUTATION_COUNT", "40"))
DISK = bytes(range(256)) * 40
# An honest answer takes a few milliseconds; what never comes is not waited for long.
HASTY = Timeouts(connect_s=1.0, call_s=0.2, stall_s=0.2, request_s=0.4, finish_s=0.4)
# Far more than all of these together: what is over it hangs.
HANG_S = 20.0

SETTINGS = settings(
    max_examples=MUTATION_COUNT, deadline=None, suppress_health_check=list(HealthCheck)
)
# What one conversation may add to the most that was ever taken: the longest listing, twice.
GROWTH_KIB_MAX = 64 << 10
Spoil = Callable[[bytes], bytes]


@st.composite
def spoilers(draw: st.DrawFn) -> Spoil:
    """Changes up to four places of some bytes, or cuts them off, or makes them long."""
    changes = draw(
        st.lists(
            st.tuples(
                st.floats(0, 1, exclude_max=True),
                st.sampled_from(("flip", "put", "drop", "insert", "repeat", "cut", "grow")),
                st.binary(min_size=1, max_size=8),
            ),
            min_size=1,
            max_size=4,
        )
    )

    def spoil(data: bytes) -> bytes:
        spoiled = bytearray(data)
        for place, kind, new in changes:
            at = int(place * len(spoiled))
            match kind:
                case "flip" if spoiled:
                    spoiled[at] ^= new[0]
                case "put":
                    spoiled[at : at + len(new)] = new
                case "drop":
                    del spoiled[at : at + len(new)]
                case "insert":
                    spoiled[at:at] = new
                case "repeat":
                    spoiled[at:at] = spoiled[at : at + 40]
                case "cut":
                    del spoiled[at:]
                case "grow":
                    spoiled[at:at] = new * 20000
        return bytes(spoiled)

    return spoil


class SpoilingWriter:
    """A server's writer that changes one of the things it writes."""

    def __init__(self, writer: asyncio.StreamWriter, numbered: list[int], spoil: Spoil) -> None:
        self._writer = writer
        self._numbered = numbered
        self._spoil = spoil

    def write(self, data: bytes) -> None:
        self._numbered[0] -= 1
        self._writer.write(self._spoil(bytes(data)) if self._numbered[0] == 0 else data)

    def writelines(self, buffers: Iterable[bytes]) -> None:
        self.write(b"".join(buffers))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


def make_server() -> FakePbs:
    return FakePbs(
        PbsConfig(refusal_delay_s=0.0), PbsSurroundings(now_s=time.time, chance=os.urandom)
    )


def make_endpoint(
    pbs: FakePbs, wrap: Callable[[asyncio.StreamWriter], Any], tasks: list[asyncio.Task[None]]
) -> PbsEndpoint:
    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        client, (reader, writer) = memory_streams()
        tasks.append(asyncio.ensure_future(pbs.serve(reader, wrap(writer))))
        return client

    auth_id = AuthId.parse(DEFAULT_USER.auth_id)
    clock = SkippingClock()
    return PbsEndpoint(
        Repository(datastore="tank", auth_id=auth_id),
        trust=TlsTrust(),
        login=make_login(auth_id, Secret(DEFAULT_USER.secret), clock),
        clock=clock,
        timeouts=HASTY,
        open_stream=connect,
    )


def nothing() -> None:
    """Nothing happens between the backups."""


async def converse(endpoint: PbsEndpoint, between: Callable[[], None]) -> None:
    """Back up twice, list, and read back."""
    uploader = PbsUploader(
        endpoint,
        clock=SkippingClock(),
        open_nbd=lambda _: PatternDisk(DISK, changed=[(0, 1)]),
        thread_count=1,
    )
    base = b""
    for number in range(2):
        upload = await uploader.open(
            backup_at(number),
            [PbsDisk(device_id="drive-scsi0", size_bytes=len(DISK), base_csum=base)],
            configs=CONFIGS,
        )
        try:
            origin = DiskOrigin(
                device_id="drive-scsi0", size_bytes=len(DISK), nbd_socket="-", bitmap_name="b"
            )
            if not upload.reuse[0].is_incremental:
                uploader.open_nbd = lambda _: PatternDisk(DISK)
            transfer = await upload.begin([origin])
            try:
                await transfer.finish()
            finally:
                await transfer.cancel()
            base = (await upload.finish()).manifest.entries[-1].csum
        finally:
            await upload.abort()
        if not number:
            between()
    await DatastoreCalls(endpoint, Namespace()).list_backups()
    reader = await BackupReader.open(endpoint, Namespace(), backup_at(1))
    try:
        assert await reader.read_blob("fw.conf.blob") == CONFIGS[1][1]
        proof = await reader.verify_disk("drive-scsi0.img.fidx", thread_count=1)
        # Whatever was spoiled: what is called proved is so.
        assert proof.size_bytes == len(DISK)
    finally:
        await reader.close()


async def assert_ends(
    pbs: FakePbs,
    wrap: Callable[[asyncio.StreamWriter], Any],
    between: Callable[[], None] = nothing,
) -> bool:
    """Converse; whether all went well. Everything but a typed error fails, and so does hoarding."""
    tasks: list[asyncio.Task[None]] = []
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        async with asyncio.timeout(HANG_S):
            await converse(make_endpoint(pbs, wrap, tasks), between)
    except BackupError as error:
        assert type(error).__name__ != "InternalError", error
        assert "\n" not in str(error)
        return False
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kib
        assert grown_kib < GROWTH_KIB_MAX
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not {task for task in left if not task.done()}
    return True


def keep(writer: asyncio.StreamWriter) -> asyncio.StreamWriter:
    """Nothing is changed."""
    return writer


def test_conversation_that_is_not_spoiled_succeeds() -> None:
    assert asyncio.run(assert_ends(make_server(), keep))


@SETTINGS
@given(number=st.integers(1, 70), spoil=spoilers())
def test_spoiled_bytes_end_in_a_typed_error(number: int, spoil: Spoil) -> None:
    numbered = [number]
    asyncio.run(assert_ends(make_server(), lambda writer: SpoilingWriter(writer, numbered, spoil)))


ENDPOINTS = (
    "POST /access/ticket",
    "GET /backup",
    "GET /reader",
    "GET /previous",
    "GET /admin/datastore/tank/snapshots",
    "POST /blob",
    "POST /fixed_index",
    "POST /fixed_chunk",
    "PUT /fixed_index",
    "POST /fixed_close",
    "POST /finish",
    "GET /download",
    "GET /chunk",
)
GOOD_TEXTS = (
    '{"data":null}',
    '{"data":1}',
    '{"data":"%s"}' % ("ab" * 32),
    '{"data":{"ticket":"PBS:root@pam:00000000::abc","CSRFPreventionToken":"1:2"}}',
    '{"data":[{"backup-type":"vm","backup-id":"100","backup-time":1,"files":["a.blob"]}]}',
    "no valid previous backup",
    "",
)


@SETTINGS
@given(
    endpoint=st.sampled_from(ENDPOINTS),
    first=st.integers(1, 3),
    status=st.sampled_from((200, 200, 200, 204, 400, 401, 403, 404, 500, 503)),
    text=st.sampled_from(GOOD_TEXTS)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=8,
    ).map(lambda value: json.dumps({"data": value}))
    | st.text(max_size=300)
    | st.integers(1, 2000000).map(lambda length: "x" * length),
    spoil=st.none() | spoilers(),
)
def test_spoiled_reply_ends_in_a_typed_error(
    endpoint: str, first: int, status: int, text: str, spoil: Spoil | None
) -> None:
    if spoil is not None:
        text = spoil(text.encode(errors="replace")).decode(errors="replace")
    pbs = make_server()
    pbs.faults.add(
        Fault(
            kind=FaultKind.REPLY,
            endpoint=endpoint,
            first=first,
            status=status,
            text=text.encode(errors="replace").decode(),
        )
    )
    asyncio.run(assert_ends(pbs, keep))


def spoil_file(pbs: FakePbs, choice: float, spoil: Spoil) -> None:
    """Change one of the files that the datastore holds."""
    files = pbs.datastores["tank"].files
    found: list[str] = []
    waiting = ["vm", ".chunks"]
    while waiting:
        path = waiting.pop()
        for name in sorted(files.names(path)):
            below = f"{path}/{name}"
            facts = files.facts(below)
            if facts is not None and facts.is_directory:
                waiting.append(below)
            elif not name.startswith((".", "owner")):
                found.append(below)
    chosen = found[int(choice * len(found))]
    files.write(chosen, spoil(files.read(chosen)))


@SETTINGS
@given(choice=st.floats(0, 1, exclude_max=True), spoil=spoilers())
def test_spoiled_file_ends_in_a_typed_error(choice: float, spoil: Spoil) -> None:
    pbs = make_server()
    asyncio.run(assert_ends(pbs, keep, lambda: spoil_file(pbs, choice, spoil)))
