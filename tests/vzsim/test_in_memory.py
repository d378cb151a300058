"""Conversations without text: a client in the same process sees what a socket would show."""

from __future__ import annotations

import asyncio
import gc
import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from tests.contract.fakes import MemorySubject
from vzdump_qemu.errors import QmpCommandError, QmpUnreachable
from vzdump_qemu.formats.vma.layout import VMA_CLUSTER_BYTES
from vzsim.fakeqmp.disks import FaultyDisk, LimitedDisk, MemoryDisk, content_of
from vzsim.fakeqmp.schema import Dialect
from vzsim.fakeqmp.vma_output import VmaOutput
from vzsim.kernel import collecting_seldom, run_simulated
from vzsim.world.channels import OneClient, open_qmp
from vzsim.world.restore import restore_disks

_REQUESTS: tuple[dict[str, Any], ...] = (
    {"execute": "qmp_capabilities"},
    {"execute": "query-version", "id": 1},
    {"execute": "query-qmp-schema", "id": "schema"},
    {"execute": "query-block"},
    {"execute": "query-named-block-nodes", "arguments": {"flat": True}},
    {"execute": "cont"},
    {"execute": "stop", "id": {"any": ["value"]}},
    {"execute": "query-status", "arguments": {"odd": 1}},
    {"execute": "getfd", "arguments": {"fdname": "x"}},
    {"execute": "no-such-command"},
    {"execute": 5},
    {"arguments": {}},
)


def _talk_in_text(subject: MemorySubject) -> list[Any]:
    received: list[Any] = []
    monitor = subject.machine.monitors[0]
    monitor.connect(lambda data: received.append(json.loads(data)), lambda: None)
    for request in _REQUESTS:
        monitor.receive(json.dumps(request).encode())
    return received


def _talk_in_objects(subject: MemorySubject) -> list[Any]:
    received: list[Any] = []
    monitor = subject.machine.monitors[0]
    monitor.connect_in_memory(
        lambda message: received.append(json.loads(json.dumps(message))), lambda: None
    )
    for request in _REQUESTS:
        monitor.take(dict(request))
    return received


@pytest.mark.parametrize("dialect", list(Dialect))
def test_conversation_in_objects_is_the_one_in_text(dialect: Dialect) -> None:
    in_text = _talk_in_text(MemorySubject("text", dialect))
    assert _talk_in_objects(MemorySubject("objects", dialect)) == in_text
    assert sum("event" not in message for message in in_text) == len(_REQUESTS) + 1


def test_client_that_left_gets_no_message() -> None:
    received: list[Any] = []
    monitor = MemorySubject("memory", Dialect.PVE).machine.monitors[0]
    monitor.connect_in_memory(received.append, lambda: None)
    monitor.take({"execute": "qmp_capabilities"})
    monitor.disconnect()
    count = len(received)
    monitor.take({"execute": "query-status"})
    assert len(received) == count


def test_reply_that_a_client_changes_changes_nothing_in_the_machine() -> None:
    monitor = MemorySubject("memory", Dialect.PVE).machine.monitors[0]

    async def converse() -> tuple[Any, Any]:
        turn = OneClient()
        connection = open_qmp(monitor, turn, timeout_s=5.0, duplicate_fd=lambda fd: fd)
        async with connection as qmp:
            first = await qmp.execute("query-block", timeout_s=5.0)
            before = json.dumps(first)
            first[0]["device"] = "changed"
            first[0]["inserted"]["image"].clear()
            return before, json.dumps(await qmp.execute("query-block", timeout_s=5.0))

    before, after = run_simulated(converse())
    assert after == before


def test_refused_command_raises_the_error_of_the_reply() -> None:
    monitor = MemorySubject("memory", Dialect.PVE).machine.monitors[0]

    async def ask() -> None:
        connection = open_qmp(monitor, OneClient(), timeout_s=5.0, duplicate_fd=lambda fd: fd)
        async with connection as qmp:
            await qmp.execute("no-such-command", timeout_s=5.0)

    with pytest.raises(QmpCommandError) as caught:
        run_simulated(ask())
    assert caught.value.error_class == "CommandNotFound"


# -- turns -----------------------------------------------------------------------------------------


def test_second_client_waits_and_is_refused_after_its_time() -> None:
    async def take_turns() -> float:
        turn = OneClient()
        await turn.enter(1.0, lambda: QmpUnreachable("held"))
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        with pytest.raises(QmpUnreachable):
            await turn.enter(3.0, lambda: QmpUnreachable("held"))
        return loop.time() - began_s

    assert run_simulated(take_turns()) == pytest.approx(3.0, abs=0.01)


def test_waiting_clients_get_their_turn_in_the_order_they_came() -> None:
    async def take_turns() -> list[int]:
        turn, order = OneClient(), []

        async def use(number: int) -> None:
            await asyncio.sleep(0.01 * number)
            await turn.enter(10.0, lambda: QmpUnreachable("held"))
            order.append(number)
            await asyncio.sleep(1.0)
            turn.leave()

        await asyncio.gather(*(use(number) for number in range(4)))
        return order

    assert run_simulated(take_turns()) == [0, 1, 2, 3]


# -- disks and memory ------------------------------------------------------------------------------


@pytest.mark.parametrize("offset_bytes", [0, 100, 4095, 4096, 9000])
@pytest.mark.parametrize("length_bytes", [0, 1, 4096, 4097, 10000])
def test_memory_disk_reads_as_plain_bytes_do(offset_bytes: int, length_bytes: int) -> None:
    disk, plain = MemoryDisk(size_bytes=20480), bytearray(20480)
    for byte in (b"\1", b"\0", b"\2"):
        data = byte * length_bytes
        disk.write(offset_bytes, data)
        plain[offset_bytes : offset_bytes + length_bytes] = data
        assert disk.read(0, 20480) == plain
        assert disk.read(offset_bytes, length_bytes) == data
        assert disk.content()[3000:13000] == plain[3000:13000]
        assert disk.content() == plain


def test_memory_disk_made_smaller_and_larger_again_has_zeroes_there() -> None:
    disk = MemoryDisk(b"\1" * 8192)
    disk.resize(4608)
    disk.resize(8192)
    assert disk.read(0, 8192) == b"\1" * 4608 + bytes(3584)


def test_content_of_a_disk_stays_when_the_disk_is_written() -> None:
    disk = MemoryDisk(b"\1" * 8192)
    kept = content_of(disk)
    disk.write(600, b"later")
    assert kept == b"\1" * 8192
    assert kept != content_of(disk)
    assert content_of(LimitedDisk(disk, 512)) == b"\1" * 512


def test_content_of_a_disk_that_cannot_be_read_fails() -> None:
    disk = FaultyDisk(MemoryDisk(b"\1" * 1024), bad_sector=1, errno_code=5)
    with pytest.raises(OSError, match="Input/output error"):
        content_of(disk)


class _Sink:
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: memoryview) -> int:
        self.data += data
        return len(data)

    def when_writable(self, callback: Callable[[], None]) -> None:
        raise AssertionError("never full")

    def close(self) -> None:
        """Nothing is held."""


def _stream_of(add: Callable[[VmaOutput], int], size_bytes: int) -> bytes:
    sink = _Sink()
    output = VmaOutput(sink, on_drained=lambda: None)
    output.open(
        archive_uuid=uuid.UUID(int=1),
        ctime_s=0,
        configs=[],
        devices=[("drive-scsi0", size_bytes)],
    )
    add(output)
    output.finish()
    return bytes(sink.data)


def test_write_after_a_cluster_was_taken_does_not_reach_the_stream() -> None:
    disk = MemoryDisk(b"\1" * VMA_CLUSTER_BYTES)

    def add_and_write(output: VmaOutput) -> int:
        zero_bytes = output.add_blocks(1, 0, 1, disk.blocks(0, 16))
        disk.write(0, b"\2" * VMA_CLUSTER_BYTES)
        return zero_bytes

    stream = _stream_of(add_and_write, VMA_CLUSTER_BYTES)
    assert restore_disks(stream) == {"drive-scsi0": b"\1" * VMA_CLUSTER_BYTES}


def test_known_blocks_make_the_same_stream_as_the_bytes_they_are() -> None:
    size_bytes = VMA_CLUSTER_BYTES + 512
    disk = MemoryDisk(size_bytes=size_bytes)
    disk.write(5000, b"data")
    disk.write(size_bytes - 1, b"\3")
    zero_bytes: list[int] = []

    def add_bytes(output: VmaOutput) -> int:
        zero_bytes.append(output.add(1, 0, disk.read(0, size_bytes)))
        return zero_bytes[-1]

    def add_blocks(output: VmaOutput) -> int:
        zero_bytes.append(output.add_blocks(1, 0, 2, disk.blocks(0, 17)))
        return zero_bytes[-1]

    assert _stream_of(add_bytes, size_bytes) == _stream_of(add_blocks, size_bytes)
    assert zero_bytes == [30 * 4096] * 2


def test_disk_of_zeroes_has_whole_sectors() -> None:
    disk = MemoryDisk(size_bytes=1000)
    assert disk.size_bytes == 1024
    assert disk.read(0, 1024) == bytes(1024)


def test_collector_looks_as_often_after_a_run_as_before() -> None:
    before = gc.get_threshold()
    with pytest.raises(KeyError), collecting_seldom():
        assert gc.get_threshold()[0] > before[0]
        raise KeyError
    assert gc.get_threshold() == before
