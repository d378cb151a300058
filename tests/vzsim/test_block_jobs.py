"""Copying jobs, bitmaps and NBD sessions beyond what the recordings show."""

from __future__ import annotations

import json
import struct
from typing import Any

from vzsim.fakeqmp.bitmaps import Bitmap
from vzsim.fakeqmp.disks import CrampedDisk
from vzsim.fakeqmp.exports import Exports
from vzsim.fakeqmp.machine import Machine, MachineConfig, ProcessEnd
from vzsim.fakeqmp.memory import MemoryHost, VirtualTimebase
from vzsim.fakeqmp.nbd_session import NbdSession, allocation_extents
from vzsim.fakeqmp.schema import Dialect
from vzsim.fakeqmp.script import Script
from vzsim.fakeqmp.storage_host import MemoryStorage

_MIB = 1 << 20
_PIECE = 65536
_NBD_ADDRESS = {"type": "unix", "data": {"path": "/run/nbd"}}


class _Bench:
    """One machine with a disk of 4 MiB, an image to copy to, and a monitor."""

    def __init__(self) -> None:
        self.time = VirtualTimebase()
        self.host = MemoryHost()
        self.source = self.host.add_disk("/disk.raw", 4 * _MIB)
        self.target = self.host.add_disk("/target.raw", 4 * _MIB)
        self.target.write(0, bytes(4 * _MIB))
        self.ends: list[ProcessEnd] = []
        self.machine = Machine(
            MachineConfig(dialect=Dialect.UPSTREAM),
            script=Script(),
            timebase=self.time,
            host=self.host,
            on_end=self.ends.append,
            storage=MemoryStorage(self.host.disks),
        )
        self.events: list[tuple[str, Any]] = []
        self.replies: list[Any] = []
        monitor = self.machine.add_monitor()
        self.monitor = monitor
        monitor.connect(self._received, lambda: None)
        self.ask("qmp_capabilities")
        self._add("disk")
        self.machine.block.attach_device("disk", "scsi0")
        self.machine.start()

    def _add(self, name: str) -> None:
        file = {"driver": "file", "filename": f"/{name}.raw"}
        assert self.ask("blockdev-add", driver="raw", node_name=name, file=file) == {}

    def add_target(self) -> None:
        self._add("target")

    def _received(self, data: bytes) -> None:
        for line in data.splitlines():
            message = json.loads(line)
            if "event" in message:
                self.events.append((message["event"], message.get("data")))
            else:
                self.replies.append(message.get("return", message.get("error")))

    def ask(self, command: str, /, **arguments: Any) -> Any:
        given = {key.replace("_", "-"): value for key, value in arguments.items()}
        self.monitor.receive(json.dumps({"execute": command, "arguments": given}).encode())
        return self.replies[-1]

    def wait(self, delay_s: float) -> None:
        self.time.advance_to(self.time.now_s() + delay_s)

    def names(self) -> list[str]:
        return [name for name, _ in self.events if name != "JOB_STATUS_CHANGE"]

    def write(self, offset_bytes: int, data: bytes) -> list[int]:
        outcomes: list[int] = []
        self.machine.guest_write("disk", offset_bytes, data, outcomes.append)
        return outcomes

    def bitmap(self) -> Bitmap:
        node = self.machine.block.node("disk")
        assert node is not None
        return node.bitmaps["b"]


def test_full_backup_while_guest_writes_keeps_the_point_in_time() -> None:
    bench = _Bench()
    bench.add_target()
    before = bench.source.read(0, 4 * _MIB)
    given = {"device": "disk", "target": "target", "sync": "full", "job_id": "j"}
    assert bench.ask("blockdev-backup", **given, speed=_MIB) == {}
    bench.wait(0.5)
    assert bench.write(3 * _MIB + 5, b"new") == [0]
    bench.wait(10)
    assert bench.names() == ["BLOCK_JOB_COMPLETED"]
    assert bench.target.read(0, 4 * _MIB) == before
    assert bench.source.read(3 * _MIB + 5, 3) == b"new"


def test_mirror_when_ready_follows_writes_until_told_to_complete() -> None:
    bench = _Bench()
    given = {"device": "disk", "target": "/copy.raw", "sync": "full", "format": "raw"}
    assert bench.ask("drive-mirror", **given, job_id="m") == {}
    bench.wait(1)
    assert bench.names() == ["BLOCK_JOB_READY"]
    assert bench.ask("query-block-jobs")[0]["ready"] is True
    bench.write(_MIB, b"later")
    assert bench.ask("block-job-complete", device="m") == {}
    bench.wait(1)
    assert bench.names() == ["BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED"]
    copy = bench.host.disks["/copy.raw"]
    assert copy.read(0, 4 * _MIB) == bench.source.read(0, 4 * _MIB)
    assert bench.ask("query-jobs") == []


def test_failed_incremental_gives_the_bits_back_with_the_new_ones() -> None:
    bench = _Bench()
    bench.host.disks["/target.raw"] = CrampedDisk(bench.target, room_bytes=_PIECE)
    bench.add_target()
    bench.ask("block-dirty-bitmap-add", node="disk", name="b")
    bench.write(0, bytes(4 * _PIECE))
    given = {"device": "disk", "target": "target", "sync": "incremental", "bitmap": "b"}
    assert bench.ask("blockdev-backup", **given, job_id="j") == {}
    assert bench.bitmap().busy
    bench.wait(1)
    assert bench.events[-3][1]["error"] == "No space left on device"
    assert not bench.bitmap().busy
    assert bench.bitmap().dirty == {0, 1, 2, 3}


def test_failed_bitmap_backup_in_mode_always_keeps_only_what_is_left() -> None:
    bench = _Bench()
    bench.host.disks["/target.raw"] = CrampedDisk(bench.target, room_bytes=_PIECE)
    bench.add_target()
    bench.ask("block-dirty-bitmap-add", node="disk", name="b")
    bench.write(0, bytes(4 * _PIECE))
    given = {"device": "disk", "target": "target", "sync": "bitmap", "bitmap": "b"}
    assert bench.ask("blockdev-backup", **given, bitmap_mode="always", job_id="j") == {}
    bench.wait(1)
    assert bench.bitmap().dirty == {1, 2, 3}


def test_ignored_target_error_is_tried_again_until_there_is_room() -> None:
    bench = _Bench()
    cramped = CrampedDisk(bench.target, room_bytes=_MIB)
    bench.host.disks["/target.raw"] = cramped
    bench.add_target()
    given = {"device": "disk", "target": "target", "sync": "full", "job_id": "j"}
    assert bench.ask("blockdev-backup", **given, on_target_error="ignore") == {}
    bench.wait(0.25)
    assert set(bench.names()) == {"BLOCK_JOB_ERROR"}
    cramped.room_bytes = 8 * _MIB
    bench.wait(1)
    assert bench.names()[-1] == "BLOCK_JOB_COMPLETED"
    assert bench.target.read(0, 4 * _MIB) == bench.source.read(0, 4 * _MIB)


def test_transaction_with_abort_action_undoes_everything_before_it() -> None:
    bench = _Bench()
    bench.add_target()
    data = {"device": "disk", "target": "target", "sync": "none", "job-id": "j"}
    actions = [
        {"type": "block-dirty-bitmap-add", "data": {"node": "disk", "name": "b"}},
        {"type": "blockdev-backup", "data": data},
        {"type": "abort", "data": {}},
    ]
    reply = bench.ask("transaction", actions=actions)
    assert reply["desc"] == "Transaction aborted using Abort action"
    assert bench.ask("query-jobs") == []
    node = bench.machine.block.node("disk")
    assert node is not None
    assert (node.bitmaps, node.guards, node.filter_node) == ({}, [], None)
    assert bench.ask("blockdev-del", node_name="target") == {}


def test_broken_snapshot_lets_the_guest_write_and_fails_the_reader() -> None:
    bench = _Bench()
    bench.host.disks["/target.raw"] = CrampedDisk(bench.target, room_bytes=0)
    bench.add_target()
    filter_options = {"driver": "copy-before-write", "node_name": "cbw", "file": "disk"}
    how = {"target": "target", "on_cbw_error": "break-snapshot"}
    assert bench.ask("blockdev-add", **filter_options, **how) == {}
    path = {"path": "/machine/peripheral/scsi0", "property": "drive"}
    assert bench.ask("qom-set", **path, value="cbw") == {}
    view = {"driver": "snapshot-access", "node_name": "view", "file": "cbw"}
    assert bench.ask("blockdev-add", **view) == {}
    outcomes: list[int] = []
    bench.machine.guest_write("scsi0", 0, b"new", outcomes.append)
    assert outcomes == [0]
    node = bench.machine.block.node("view")
    assert node is not None and node.disk is not None
    session, sent = _export(bench, "view")
    _send(session, command=0, offset=0, length=4096)
    assert sent[-1] == struct.pack(">IIQ", 0x67446698, 5, 7)


def test_guest_write_to_a_full_fleecing_target_stops_the_machine_until_the_job_is_gone() -> None:
    bench = _Bench()
    bench.host.disks["/target.raw"] = CrampedDisk(bench.target, room_bytes=0)
    bench.add_target()
    given = {"device": "disk", "target": "target", "sync": "none", "job_id": "j"}
    assert bench.ask("blockdev-backup", **given) == {}
    outcomes: list[int] = []
    bench.machine.requests.submit("disk", 0, b"new", outcomes.append)
    bench.wait(0.1)
    assert bench.ask("query-status")["status"] == "io-error"
    assert bench.ask("query-block")[0]["io-status"] == "nospace"
    assert bench.ask("block-job-cancel", device="j") == {}
    assert bench.ask("cont") == {}
    bench.wait(0.1)
    assert outcomes == [0]
    assert bench.source.read(0, 3) == b"new"
    assert bench.ask("query-block")[0]["io-status"] == "ok"


def test_dead_process_copies_no_further() -> None:
    bench = _Bench()
    bench.add_target()
    given = {"device": "disk", "target": "target", "sync": "full", "job_id": "j"}
    bench.ask("blockdev-backup", **given, speed=_MIB)
    bench.wait(0.5)
    bench.machine.die("SIGKILL")
    bench.wait(10)
    assert not any(bench.target.read(_MIB, 3 * _MIB))


def _export(bench: _Bench, name: str) -> tuple[NbdSession, list[bytes]]:
    assert bench.ask("nbd-server-start", addr=_NBD_ADDRESS) == {}
    assert bench.ask("block-export-add", type="nbd", id="e", node_name=name, name="d") == {}
    return _connect(bench.machine.exports)


def _connect(exports: Exports) -> tuple[NbdSession, list[bytes]]:
    sent: list[bytes] = []
    session = NbdSession(exports, sent.append)
    session.feed(struct.pack(">I", 3))
    session.feed(struct.pack(">QII", 0x49484156454F5054, 1, 1) + b"d")
    return session, sent


def _send(
    session: NbdSession, *, command: int, offset: int, length: int, data: bytes = b""
) -> None:
    header = struct.pack(">IHHQQI", 0x25609513, 0, command, 7, offset, length)
    for byte in header + data:
        session.feed(bytes([byte]))


def test_nbd_session_fed_byte_by_byte_reads_and_refuses() -> None:
    bench = _Bench()
    session, sent = _export(bench, "disk")
    assert bench.ask("block-export-del", id="e")["desc"] == "export 'e' still in use"
    _send(session, command=0, offset=10, length=20)
    assert sent[-1] == struct.pack(">IIQ", 0x67446698, 0, 7) + bench.source.read(10, 20)
    _send(session, command=0, offset=4 * _MIB - 1, length=2)
    assert sent[-1] == struct.pack(">IIQ", 0x67446698, 22, 7)
    _send(session, command=1, offset=0, length=3, data=b"abc")
    assert sent[-1] == struct.pack(">IIQ", 0x67446698, 1, 7)
    _send(session, command=2, offset=0, length=0)
    assert session.is_over
    assert bench.ask("block-export-del", id="e") == {}


def test_nbd_session_asked_for_unknown_export_closes() -> None:
    bench = _Bench()
    session, _ = _connect(bench.machine.exports)
    assert session.is_over


def test_allocation_of_a_range_joins_equal_pieces() -> None:
    bench = _Bench()
    bench.source.write(_PIECE, bytes(2 * _PIECE))
    extents = allocation_extents(bench.source, 100, 4 * _PIECE - 100)
    assert extents == [(_PIECE - 100, 0), (2 * _PIECE, 3), (_PIECE, 0)]
