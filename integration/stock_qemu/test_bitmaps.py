"""Increments of a VM that Debian's QEMU runs: only what changed is read, and nothing is missed.

A guest's writes happen before every command that the tool sends, so also between those that begin
and copy a bitmap and the one that fixes the point in time; a model of the disks follows them.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from integration.real_lab import RealLab
from vzdump_qemu.api import join_ports
from vzdump_qemu.disk_ports import PIECE_BYTES, DiskOrigin
from vzdump_qemu.engine.attachments import RunDisk
from vzdump_qemu.engine.change_tracking import (
    NO_BASE,
    NO_BITMAP,
    OTHER_BASE,
    OTHER_SIZE,
    IncrementalRequest,
)
from vzdump_qemu.engine.context import EnginePorts
from vzdump_qemu.engine.pull_source import PullSource
from vzdump_qemu.engine.recovery import recover_vm
from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.errors import JobError
from vzdump_qemu.events import Event, UndoFailed
from vzdump_qemu.node.local_node import LocalNode
from vzdump_qemu.node.opening import open_node
from vzdump_qemu.plan.options import FleecingOptions
from vzdump_qemu.ports import Agent, Machine, Power, Qmp, QmpEvent
from vzdump_qemu.qemu.nbd_disk import NbdDisk
from vzdump_qemu.stores.disk_pump import DiskPump
from vzdump_qemu.stores.system import SystemClock

MIB = 1 << 20
SIZES = {"scsi0": 64 * MIB, "scsi1": 48 * MIB + 512}
WRITE_BYTES_MAX = 64 << 10
REOPEN = "blockdev-reopen"


@dataclass
class Guest:
    """Writes to its disks, and knows what they hold.

    Attributes:
        at_fix: what they held when a node was last put onto another: in the end, at the point in
            time.
    """

    contents: dict[str, bytearray]
    chance: random.Random = field(default_factory=lambda: random.Random(7))
    is_idle: bool = True
    at_fix: dict[str, bytes] = field(default_factory=dict)
    turn: int = 0

    async def write(self, qmp: Qmp, *, elsewhere: bool) -> None:
        """Write somewhere in the first piece of each disk, or in one that was not hit lately."""
        self.turn += elsewhere
        for key, content in self.contents.items():
            piece_index = self.turn % (len(content) // PIECE_BYTES) if elsewhere else 0
            length = self.chance.randrange(512, WRITE_BYTES_MAX, 512)
            at = self.chance.randrange(0, PIECE_BYTES - length, 512) + piece_index * PIECE_BYTES
            pattern = self.chance.randrange(1, 256)
            words = f'qemu-io -d /machine/peripheral/{key} "write -P {pattern} {at} {length}"'
            told = await qmp.execute("human-monitor-command", {"command-line": words}, timeout_s=30)
            assert "fail" not in told.lower(), told
            content[at : at + length] = bytes([pattern]) * length


class BusyQmp:
    """The guest writes before every command."""

    def __init__(self, qmp: Qmp, guest: Guest) -> None:
        self._qmp = qmp
        self._guest = guest
        self._last = ""

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float
    ) -> Any:
        if not self._guest.is_idle:
            await self._guest.write(self._qmp, elsewhere=REOPEN in (command, self._last))
        self._last = command
        if command == REOPEN:
            self._guest.at_fix = {
                f"drive-{key}": bytes(content) for key, content in self._guest.contents.items()
            }
        return await self._qmp.execute(command, arguments, timeout_s=timeout_s)

    async def execute_with_fd(
        self, command: str, arguments: Mapping[str, Any], fd: int, *, timeout_s: float
    ) -> Any:
        return await self._qmp.execute_with_fd(command, arguments, fd, timeout_s=timeout_s)

    def events(self, *names: str) -> AbstractAsyncContextManager[AsyncIterator[QmpEvent]]:
        return self._qmp.events(*names)


class BusyMachine:
    """A machine whose guest writes all the time."""

    def __init__(self, machine: Machine, guest: Guest) -> None:
        self._machine = machine
        self._guest = guest

    @property
    def vmid(self) -> int:
        return self._machine.vmid

    @property
    def power(self) -> Power:
        return self._machine.power

    @property
    def private_directory(self) -> str:
        return self._machine.private_directory

    @asynccontextmanager
    async def connect_qmp(self, *, timeout_s: float) -> AsyncIterator[Qmp]:
        async with self._machine.connect_qmp(timeout_s=timeout_s) as qmp:
            yield BusyQmp(qmp, self._guest)

    def connect_agent(self, *, timeout_s: float) -> AbstractAsyncContextManager[Agent]:
        return self._machine.connect_agent(timeout_s=timeout_s)

    async def has_backup_job(self) -> bool:
        return await self._machine.has_backup_job()

    async def is_running(self) -> bool:
        return await self._machine.is_running()

    def keep_alive(self) -> AbstractAsyncContextManager[None]:
        return self._machine.keep_alive()


class PatchingSink:
    """A `DiskSink` that puts what it is given over what the base holds."""

    def __init__(self, origins: Sequence[DiskOrigin], base: Mapping[str, bytes]) -> None:
        self._lock = threading.Lock()
        self.given_bytes = 0
        self.contents = {
            origin.device_id: bytearray(
                base.get(origin.device_id, b"").ljust(origin.size_bytes, b"\xee")
            )
            for origin in origins
        }
        self._order = [origin.device_id for origin in origins]

    def put(self, disk_index: int, offset_bytes: int, data: memoryview) -> int:
        self._put(disk_index, offset_bytes, bytes(data))
        return 0

    def put_zeroes(self, disk_index: int, offset_bytes: int, length_bytes: int) -> None:
        self._put(disk_index, offset_bytes, bytes(length_bytes))

    def put_unchanged(self, disk_index: int, offset_bytes: int, length_bytes: int) -> None:
        """It stays as it is in the base."""

    def finish(self) -> None:
        """All is in memory."""

    def interrupt(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""

    def _put(self, disk_index: int, offset_bytes: int, data: bytes) -> None:
        with self._lock:
            self.given_bytes += len(data)
            content = self.contents[self._order[disk_index]]
            content[offset_bytes : offset_bytes + len(data)] = data


@dataclass
class Chain:
    """A VM that is backed up again and again to one target."""

    node: LocalNode
    guest: Guest
    machine: BusyMachine
    image_format: str
    told: list[Event] = field(default_factory=list)
    base_id: str = ""
    base: dict[str, bytes] = field(default_factory=dict)
    made_count: int = 0
    given_bytes: int = 0
    reasons: list[str] = field(default_factory=list)

    @property
    def ports(self) -> EnginePorts:
        return join_ports(self.node, emit=self.told.append, guarded=False)

    async def back_up(self, *, fails: bool = False, is_killed: bool = False) -> None:
        """One run; what the target then has is compared with the model."""
        ports = self.ports
        async with ports.journals.open(100) as journal:
            undo = UndoStack(self.told.append, journal, ports.clock)
            self.guest.is_idle = False
            try:
                await self._transfer(ports, undo, fails=fails or is_killed)
            except JobError:
                assert fails or is_killed
            if is_killed:
                assert await recover_vm(ports, self.machine, journal, holds_global_lock=True)
            else:
                await undo.unwind()
            self.guest.is_idle = True
        assert not [event for event in self.told if isinstance(event, UndoFailed)]
        assert len(await self.bitmap_names()) in (0, len(SIZES))

    async def _transfer(self, ports: EnginePorts, undo: UndoStack, *, fails: bool) -> None:
        disks = []
        for index, key in enumerate(SIZES):
            volid = f"local:100/vm-100-disk-{index}.{self.image_format}"
            facts = await self.node.storages.describe(volid)
            disks.append(RunDisk(key=key, device_id=f"drive-{key}", facts=facts))
        request = IncrementalRequest(target_id="store/vm/100", base_id=self.base_id)
        source = PullSource(
            ports, self.machine, disks, FleecingOptions(enabled=True), incremental=request
        )
        await source.prepare(undo)
        await source.fix()
        expected = self.guest.at_fix
        origins = await source.expose()
        self.reasons = [plan.reason for plan in source.plans]
        sink = PatchingSink(origins, self.base)
        clock = SystemClock()
        readers = [await asyncio.to_thread(NbdDisk, origin, clock=clock) for origin in origins]
        pump = DiskPump(readers, sink, clock=clock)
        for _ in range(4):
            async with self.machine.connect_qmp(timeout_s=30) as qmp:
                await qmp.execute("query-status", timeout_s=30)
        await pump.finish()
        if fails:
            raise JobError("the target is broken")
        await source.release()
        for device_id, content in sink.contents.items():
            assert bytes(content) == expected[device_id], f"{device_id} is another"
        self.given_bytes = sink.given_bytes
        self.made_count += 1
        self.base_id = f"backup-{self.made_count}"
        self.base = {device_id: bytes(content) for device_id, content in sink.contents.items()}
        await source.keep_changes(self.base_id)

    async def bitmap_names(self) -> list[str]:
        async with self.machine.connect_qmp(timeout_s=30) as qmp:
            nodes = await qmp.execute("query-named-block-nodes", {"flat": True}, timeout_s=30)
        return [
            str(bitmap.get("name", ""))
            for node in nodes
            for bitmap in node.get("dirty-bitmaps", ())
        ]


@pytest.fixture(params=["raw", "qcow2"])
async def chain(real_lab: RealLab, request: pytest.FixtureRequest) -> AsyncIterator[Chain]:
    words = []
    for key, size_bytes in SIZES.items():
        words += ["--disk", f"{key}={size_bytes},format={request.param}"]
    real_lab.create(*words)
    async with open_node(str(real_lab.root)) as node:
        guest = Guest(contents={key: bytearray(size) for key, size in SIZES.items()})
        machine = BusyMachine(node.machine(100), guest)
        await machine.power.start()
        yield Chain(node=node, guest=guest, machine=machine, image_format=request.param)


async def test_increments_with_failures_between_are_the_point_in_time(chain: Chain) -> None:
    await chain.back_up()
    assert chain.reasons == [NO_BASE, NO_BASE]
    for turn in range(6):
        match turn:
            case 1 | 2:
                await chain.back_up(fails=True)
            case 4:
                await chain.back_up(is_killed=True)
            case _:
                await chain.back_up()
                # After failures their changes are read as well.
                assert turn > 0 or chain.given_bytes < sum(SIZES.values()) * 0.75
        assert chain.reasons == ["", ""]
    assert chain.made_count == 4


async def test_qemu_started_anew_is_read_whole(chain: Chain) -> None:
    await chain.back_up()
    await chain.machine.power.stop()
    await chain.machine.power.start()
    await chain.back_up()
    assert chain.reasons == [NO_BITMAP, NO_BITMAP]
    assert chain.given_bytes == sum(SIZES.values())
    await chain.back_up()
    assert chain.reasons == ["", ""]


async def test_older_backup_at_the_target_is_not_built_upon(chain: Chain) -> None:
    await chain.back_up()
    older_id, older = chain.base_id, chain.base
    await chain.back_up()
    chain.base_id, chain.base = older_id, older
    await chain.back_up()
    assert chain.reasons == [OTHER_BASE, OTHER_BASE]
    await chain.back_up()
    assert chain.reasons == ["", ""]


async def test_resized_disk_is_read_whole(chain: Chain) -> None:
    await chain.back_up()
    async with chain.machine.connect_qmp(timeout_s=30) as qmp:
        words = {"device": "drive-scsi0", "size": 68 * MIB}
        await qmp.execute("block_resize", words, timeout_s=30)
    chain.guest.contents["scsi0"] += bytes(4 * MIB)
    await chain.back_up()
    assert chain.reasons == [OTHER_SIZE, ""]
