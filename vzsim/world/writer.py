"""A guest that works on its disks while it is being backed up, and notices what that costs.

Owns the guest's file system in action: transactions over all its disks, a volatile cache that
reaches the disks in any order until it is flushed, checkpoints, quiescing when frozen or shut
down, replaying after a crash; and the pace: fast while a backup begins, ever slower after, so that
hours of simulated waiting stay cheap. The layout and the replay are `vzsim.world.guest_files`'.
"""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import assert_never

from vzsim.fakeqmp.disks import Disk, content_of
from vzsim.world import guest_files
from vzsim.world.guest_files import PageKey, Record, Superblock, Version
from vzsim.world.machine import SimulatedMachine

_PACE_GROWTH = 1.5
_INTERVAL_S_MAX = 60.0
# The device takes up to so many requests of the cache in one go.
_BURST_COUNT_MAX = 4
_SUPERBLOCK_EVERY = 2


@dataclass(slots=True)
class WriteRecord:
    """What the guest saw of its writes; times in seconds.

    Attributes:
        damage: what it found wrong on its own disks when it started after a crash.
    """

    ended_count: int = 0
    failed_count: int = 0
    longest_s: float = 0.0
    pending_since_s: float | None = None
    damage: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestMark:
    """What the guest knows of its file system at one instant.

    Attributes:
        device_ids: the disks it lies on, in the file system's order.
        acknowledged_seq: transactions up to there are on the disks, whatever happens now.
        begun_seq: nothing of a later transaction exists yet.
        is_quiet: everything is in place and marked clean.
        versions: per page the writes it got or will get, oldest first.
    """

    device_ids: tuple[str, ...]
    acknowledged_seq: int
    begun_seq: int
    is_quiet: bool
    versions: Mapping[PageKey, tuple[Version, ...]]


class _Phase(enum.Enum):
    DOWN = enum.auto()  # not mounted
    REDO = enum.auto()  # the replayed pages are on their way
    ARMING = enum.auto()  # the superblocks are being marked as in use
    RUNNING = enum.auto()
    QUIET = enum.auto()  # frozen, or about to be switched off


_CachedWrite = tuple[int, int, bytes]
"""Index of the disk, offset in bytes, what to write there."""


class GuestWriter:
    """One guest's writing, from `start` to `stop`. Formats the VM's disks when it is made."""

    def __init__(
        self, machine: SimulatedMachine, *, writes_per_s: float, stream: random.Random
    ) -> None:
        self._machine = machine
        self._first_interval_s = 1 / writes_per_s if writes_per_s > 0 else 0.0
        self._interval_s = self._first_interval_s
        self._stream = stream
        self._timer: asyncio.TimerHandle | None = None
        self.record = WriteRecord()
        images = machine.host.images
        self._disks: list[tuple[str, Disk]] = []
        if writes_per_s > 0:
            self._disks = [
                (device_id, images[path])
                for device_id, path in machine.shape.disks
                if guest_files.page_count(images[path].size_bytes)
            ]
        # Where the pages of each disk lie.
        self._offsets = [guest_files.page_offsets(disk.size_bytes) for _, disk in self._disks]
        self._phase = _Phase.DOWN
        self._boot_count = self._mount_count = 0
        self._cache: list[_CachedWrite] = []
        self._acknowledged_seq = self._begun_seq = 0
        # Pages up to `settled` are in place for good, up to `settling` once the cache is flushed.
        self._settled_seq = self._settling_seq = 0
        self._due: list[_CachedWrite] = []
        self._is_clean = True
        self._versions: dict[PageKey, list[Version]] = {}
        self._format()
        machine.guest_listener = self

    # -- pace ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, at full pace."""
        if self._disks:
            self._interval_s = self._first_interval_s
            self._schedule(self._interval_s)

    def hurry(self) -> None:
        """Full pace again: something is going on."""
        if self._timer is not None:
            self.start()

    def stop(self) -> None:
        """No new writes."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self, delay_s: float) -> None:
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._turn)

    def _turn(self) -> None:
        self._timer = None
        process = self._machine.living
        self._notice_boot()
        if process is not None and process.control.is_running:
            is_frozen = process.agent is not None and process.agent.is_frozen
            if not is_frozen and self.record.pending_since_s is None:
                self._work()
        self._interval_s = min(_INTERVAL_S_MAX, self._interval_s * _PACE_GROWTH)
        self._schedule(self._interval_s)

    def _work(self) -> None:
        if not self._cache:
            self._flushed()
        now_s = asyncio.get_running_loop().time()
        for _ in range(1 + int(self._stream.random() * _BURST_COUNT_MAX)):
            if not self._cache or not self._write_one(now_s):
                return

    # -- what happens to the guest -------------------------------------------------------------

    def freezes(self) -> None:
        """The agent freezes the file systems: everything is put in place and marked clean.

        If a write is held back meanwhile the file system stays as it is: frozen and not clean.
        """
        self._notice_boot()
        if not self._disks or self._phase is _Phase.QUIET:
            return
        if self._phase is _Phase.DOWN:
            # A guest whose agent answers has mounted its file systems.
            self._mount()
        if not self._drain():
            return
        self._acknowledged_seq = self._settling_seq = self._begun_seq
        self._phase = _Phase.RUNNING
        self._cache, self._due = self._due, []
        if not self._drain():
            return
        self._settled_seq = self._begun_seq
        self._phase = _Phase.QUIET
        self._queue_superblocks(is_clean=True)
        self._is_clean = self._drain()

    def shuts_down(self) -> None:
        """The guest switches itself off in order."""
        if self._phase is not _Phase.DOWN:
            self.freezes()
        self._phase = _Phase.DOWN
        self._cache.clear()

    def restarts(self) -> None:
        """The guest is reset: what was not on the disks is gone."""
        self._phase = _Phase.DOWN
        self._cache.clear()

    def mark(self) -> GuestMark | None:
        """What holds at this instant; None for a guest without a file system."""
        self._notice_boot()
        if not self._disks:
            return None
        return GuestMark(
            device_ids=tuple(device_id for device_id, _ in self._disks),
            acknowledged_seq=self._acknowledged_seq,
            begun_seq=self._begun_seq,
            is_quiet=self._is_clean,
            versions={key: tuple(found) for key, found in self._versions.items()},
        )

    def _notice_boot(self) -> None:
        """Another QEMU than last time: the one before took its requests with it."""
        boot_count = self._machine.boot_count
        if self._boot_count != boot_count:
            self._boot_count = boot_count
            self.record.pending_since_s = None
            self.restarts()

    # -- the file system -----------------------------------------------------------------------

    def _format(self) -> None:
        version = Version(0, 0)
        for index, (_, disk) in enumerate(self._disks):
            for page_index, offset in enumerate(self._offsets[index]):
                key = (index, page_index)
                disk.write(offset, guest_files.encode_page(version, key))
                self._versions[key] = [version]
        self._queue_superblocks(is_clean=True)
        for disk_index, offset_bytes, data in self._cache:
            self._disks[disk_index][1].write(offset_bytes, data)
        self._cache.clear()

    def _flushed(self) -> None:
        """The cache is empty, so the disks have all of it: go on with what that allows."""
        match self._phase:
            case _Phase.DOWN:
                self._mount()
            case _Phase.REDO | _Phase.QUIET:
                self._phase = _Phase.ARMING
                self._settled_seq = self._settling_seq = self._begun_seq
                self._is_clean = False
                self._queue_superblocks(is_clean=False)
            case _Phase.ARMING | _Phase.RUNNING:
                self._phase = _Phase.RUNNING
                self._acknowledged_seq = self._begun_seq
                self._settled_seq = self._settling_seq
                self._begin_transaction()
            case _:
                assert_never(self._phase)

    def _mount(self) -> None:
        self._mount_count += 1
        self._due = []
        self._phase = _Phase.REDO
        if self._mount_count > 1:  # the first mount finds what was just formatted
            self._replay()
        if not self._cache:
            self._flushed()

    def _replay(self) -> None:
        found = guest_files.replay([content_of(disk) for _, disk in self._disks])
        self.record.damage += found.faults
        if found.last_seq < self._acknowledged_seq:
            text = f"transaction {self._acknowledged_seq} was flushed, {found.last_seq} is left"
            self.record.damage.append(text)
        self._begun_seq = self._acknowledged_seq = found.last_seq
        for versions in self._versions.values():
            versions[:] = [version for version in versions if version.seq <= found.last_seq]
        for (disk_index, page_index), data in found.redone.items():
            self._cache.append(self._page_write(disk_index, page_index, data))

    def _begin_transaction(self) -> None:
        self._settling_seq = self._begun_seq
        self._cache += self._due
        self._due = []
        self._begun_seq += 1
        version = Version(self._begun_seq, self._mount_count)
        offset = guest_files.record_offset(version.seq)
        chance = self._stream.random
        for disk_index, offsets in enumerate(self._offsets):
            pages = {}
            for _ in range(1 + int(chance() * guest_files.PAGES_PER_RECORD_MAX)):
                # Perhaps the same one twice: then it is one.
                at = int(chance() * len(offsets))
                pages[at] = guest_files.encode_page(version, (disk_index, at))
            for at, data in pages.items():
                self._versions[disk_index, at].append(version)
                self._due.append((disk_index, offsets[at], data))
            data = guest_files.encode_record(Record(version, pages), disk_index)
            self._cache.append((disk_index, offset, data))
        if self._begun_seq % _SUPERBLOCK_EVERY == 0:
            self._queue_superblocks(is_clean=False)

    def _page_write(self, disk_index: int, page_index: int, data: bytes) -> _CachedWrite:
        return disk_index, self._offsets[disk_index][page_index], data

    def _queue_superblocks(self, *, is_clean: bool) -> None:
        block = Superblock(checkpoint_seq=self._settled_seq, is_clean=is_clean)
        for index in range(len(self._disks)):
            data = guest_files.encode_superblock(block, index, len(self._disks))
            self._cache.append((index, 0, data))

    # -- the volatile cache --------------------------------------------------------------------

    def _drain(self) -> bool:
        """Flush; False if a write is held back."""
        if self.record.pending_since_s is not None:
            return False
        now_s = asyncio.get_running_loop().time()
        while self._cache:
            if not self._write_one(now_s):
                return False
        return True

    def _write_one(self, now_s: float) -> bool:
        """Hand any one write of the cache to the device; False if it does not end at once."""
        entry = self._cache.pop(int(self._stream.random() * len(self._cache)))
        disk_index, offset_bytes, data = entry
        record = self.record
        record.pending_since_s = now_s
        failed_before = record.failed_count
        begun_in = self._boot_count, self._mount_count
        ended = partial(self._ended, entry, now_s, begun_in)
        device_id = self._disks[disk_index][0]
        self._machine.process.requests.submit(device_id, offset_bytes, data, ended)
        return record.pending_since_s is None and record.failed_count == failed_before

    def _ended(
        self, entry: _CachedWrite, began_s: float, begun_in: tuple[int, int], errno_code: int
    ) -> None:
        """The device tells the end of a write that was begun in that boot and mount."""
        boot_count, mount_count = begun_in
        if boot_count != self._boot_count:
            return
        lasted_s = asyncio.get_running_loop().time() - began_s
        record = self.record
        record.pending_since_s = None
        record.ended_count += 1
        if lasted_s > record.longest_s:
            record.longest_s = lasted_s
        if errno_code:
            record.failed_count += 1
            if mount_count == self._mount_count and self._phase is not _Phase.DOWN:
                self._cache.append(entry)
