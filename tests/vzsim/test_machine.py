"""One machine in memory and virtual time: what the recordings do not show."""

from __future__ import annotations

import errno
import json
from typing import Any

import pytest

from vzdump_qemu.formats.vma import DataRead, VmaReader
from vzsim.fakeqmp.guest import Guest
from vzsim.fakeqmp.machine import Machine, MachineConfig, ProcessEnd
from vzsim.fakeqmp.memory import MemoryHost, MemorySink, VirtualTimebase
from vzsim.fakeqmp.monitor import Monitor
from vzsim.fakeqmp.script import (
    AgentRules,
    BackupRules,
    CommandRule,
    EventRule,
    GuestRules,
    Moment,
    ProcessRules,
    Script,
)

_MIB = 1 << 20
_CLUSTER_BYTES = 65536


class _Bench:
    """A machine with two disks and one client on each channel."""

    def __init__(self, script: Script | None = None, *, sizes: tuple[int, ...] = (8, 4)) -> None:
        self.timebase = VirtualTimebase()
        self.host = MemoryHost()
        self.ends: list[ProcessEnd] = []
        self.machine = Machine(
            MachineConfig(no_shutdown=True, agent_port_id="channel0"),
            script=script or Script(),
            timebase=self.timebase,
            host=self.host,
            on_end=self.ends.append,
        )
        self.disks = []
        for index, size in enumerate(sizes):
            disk = self.host.add_disk(f"/d{index}", size * _MIB)
            self.disks.append(disk)
            self.machine.block.add_disk(f"drive-scsi{index}", disk)
        self.received: list[dict[str, Any]] = []
        self.hung_up = 0
        self.monitor = self.client(self.received)
        self.agent_lines: list[bytes] = []
        assert self.machine.agent is not None
        self.agent = self.machine.agent
        self.agent.connect(self.agent_lines.append, lambda: None)
        self.machine.start()
        self.run(0.01)

    def client(self, received: list[dict[str, Any]]) -> Monitor:
        monitor = self.machine.add_monitor()
        monitor.connect(lambda data: received.append(json.loads(data)), self._hang_up)
        monitor.receive(b'{"execute":"qmp_capabilities"}')
        return monitor

    def _hang_up(self) -> None:
        self.hung_up += 1

    def run(self, seconds: float) -> None:
        self.timebase.advance_to(self.timebase.now_s() + seconds)

    def ask(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Send one command; the reply if it is there at once, else an empty object."""
        given = {key.replace("_", "-"): value for key, value in arguments.items()}
        before = len(self.received)
        self.monitor.receive(json.dumps({"execute": name, "arguments": given, "id": 1}).encode())
        replies = [m for m in self.received[before:] if "event" not in m]
        return replies[0] if replies else {}

    def backup(self, sink: MemorySink, **arguments: Any) -> dict[str, Any]:
        self.host.sinks[7] = sink
        self.monitor.receive(b'{"execute":"getfd","arguments":{"fdname":"b"}}', [7])
        return self.ask("backup", backup_file="/dev/fdname/b", **arguments)

    def status(self) -> dict[str, Any]:
        reply: dict[str, Any] = self.ask("query-backup")["return"]
        return reply

    def ask_agent(self, name: str, **arguments: Any) -> None:
        self.agent.receive(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")


def _disks_of(stream: bytes, sizes: dict[int, int]) -> dict[int, bytes]:
    """Decode a VMA stream into disks by device number."""
    disks = {number: bytearray(size) for number, size in sizes.items()}
    reader = VmaReader()
    reader.feed(stream)
    while (event := reader.next_event()) is not None:
        if isinstance(event, DataRead):
            begin = event.disk_offset_bytes
            disks[event.vma_dev_id][begin : begin + len(event.data)] = event.data
    reader.finish()
    return {number: bytes(disk) for number, disk in disks.items()}


def test_backup_with_guest_writing_holds_disks_as_they_were_at_the_start() -> None:
    bench = _Bench(
        Script(guest=GuestRules(writes_per_s=300, seed=4), backup=BackupRules(bytes_per_s=8 * _MIB))
    )
    guest = Guest(bench.machine)
    guest.start()
    bench.run(0.2)
    before = [bytes(disk.read(0, disk.size_bytes)) for disk in bench.disks]
    sink = MemorySink()
    assert "UUID" in bench.backup(sink)["return"]
    bench.run(5)
    assert bench.status()["status"] == "done"
    assert sink.is_closed
    assert guest.write_count > 300
    after = [bytes(disk.read(0, disk.size_bytes)) for disk in bench.disks]
    assert after[0] != before[0]
    decoded = _disks_of(bytes(sink.data), {1: 8 * _MIB, 2: 4 * _MIB})
    assert [decoded[1], decoded[2]] == before


def test_cancel_with_stalled_reader_freezes_all_monitors_until_it_reads() -> None:
    bench = _Bench()
    other: list[dict[str, Any]] = []
    second = bench.client(other)
    sink = MemorySink(allowance_bytes=_MIB)
    bench.backup(sink)
    bench.run(1)
    assert bench.ask("backup-cancel") == {}
    second.receive(b'{"execute":"query-status","id":5}')
    bench.run(30)
    assert not any(message.get("id") == 5 for message in other)
    sink.read_on(2 * _MIB)
    assert any(message.get("id") == 5 for message in other)
    assert bench.status()["errmsg"] == "backup canceled"
    assert sink.is_closed


def test_guest_write_with_stalled_reader_waits_for_it() -> None:
    bench = _Bench()
    sink = MemorySink(allowance_bytes=_MIB)
    bench.backup(sink, devlist="drive-scsi0")
    bench.run(1)
    outcomes: list[int] = []
    bench.machine.guest_write("drive-scsi0", 7 * _MIB, b"new", outcomes.append)
    bench.run(10)
    assert outcomes == []
    sink.read_on()
    bench.run(1)
    assert outcomes == [0]


def test_guest_write_with_broken_target_fails_with_eperm_until_job_ends() -> None:
    bench = _Bench(sizes=(8,))
    bench.backup(MemorySink(errno_code=errno.ENOSPC), speed=_MIB)
    outcomes: list[int] = []
    for position in range(1, 8):
        bench.machine.guest_write("drive-scsi0", position * _MIB, bytes(_MIB), outcomes.append)
    assert outcomes[0] == 0
    assert outcomes[-1] == errno.EPERM
    bench.run(10)
    bench.machine.guest_write("drive-scsi0", 7 * _MIB, b"x", outcomes.append)
    assert outcomes[-1] == 0
    assert "No space left on device" in bench.status()["errmsg"]


def test_same_script_and_seed_twice_gives_equal_messages() -> None:
    def messages() -> list[dict[str, Any]]:
        bench = _Bench(Script(guest=GuestRules(writes_per_s=100, seed=9)))
        Guest(bench.machine).start()
        bench.backup(MemorySink(), speed=4 * _MIB)
        bench.run(5)
        bench.status()
        return bench.received

    assert messages() == messages()


@pytest.mark.parametrize(
    ("rules", "field", "expected"),
    [
        (BackupRules(status="odd"), "status", "odd"),
        (BackupRules(uuid="other"), "uuid", "other"),
        (BackupRules(errmsg="told so"), "errmsg", "told so"),
        (BackupRules(transferred_off_by=-4096), "transferred", 12 * _MIB - 4096),
        (BackupRules(fail_at_bytes=_MIB, fail_text="broke"), "errmsg", "broke"),
    ],
)
def test_query_backup_with_scripted_lie_shows_it(
    rules: BackupRules, field: str, expected: object
) -> None:
    bench = _Bench(Script(backup=rules))
    bench.backup(MemorySink())
    bench.run(5)
    assert bench.status()[field] == expected


def test_backup_with_die_at_bytes_kills_process_and_closes_target() -> None:
    bench = _Bench(Script(backup=BackupRules(die_at_bytes=6 * _MIB)))
    sink = MemorySink()
    bench.backup(sink)
    bench.run(5)
    assert [end.signal_name for end in bench.ends] == ["SIGKILL"]
    assert sink.is_closed


def test_backup_with_stall_stands_still_and_goes_on() -> None:
    bench = _Bench(Script(backup=BackupRules(stall_at_bytes=_MIB, stall_s=60)))
    bench.backup(MemorySink())
    bench.run(50)
    assert bench.status()["status"] == "active"
    bench.run(20)
    assert bench.status()["status"] == "done"


def test_rule_on_nth_use_applies_to_that_use_only() -> None:
    rule = CommandRule(name="query-status", nth=2, error="no", error_class="X")
    bench = _Bench(Script(command=(rule,)))
    assert "return" in bench.ask("query-status")
    assert bench.ask("query-status")["error"] == {"class": "X", "desc": "no"}
    assert "return" in bench.ask("query-status")


def test_rule_with_patch_and_drop_bends_the_real_reply() -> None:
    rule = CommandRule(name="query-status", patch={"status": "odd"}, drop=("running",))
    bench = _Bench(Script(command=(rule,)))
    assert bench.ask("query-status")["return"] == {"status": "odd"}


def test_rule_with_delay_holds_the_whole_service() -> None:
    bench = _Bench(Script(command=(CommandRule(name="query-status", delay_s=2.0),)))
    assert bench.ask("query-status") == {}
    assert bench.ask("query-version") == {}
    bench.run(3)
    assert [m for m in bench.received if m.get("return", {}).get("running")] != []


def test_rule_with_silence_and_wrong_id() -> None:
    rules = (
        CommandRule(name="query-status", silent=True),
        CommandRule(name="query-version", reply_id="wrong"),
    )
    bench = _Bench(Script(command=rules))
    assert bench.ask("query-status") == {}
    assert bench.ask("query-version")["id"] == "wrong"


@pytest.mark.parametrize(
    ("moment", "state"), [(Moment.BEFORE, "running"), (Moment.AFTER, "paused")]
)
def test_rule_with_close_closes_before_or_after_the_effect(moment: Moment, state: str) -> None:
    bench = _Bench(Script(command=(CommandRule(name="stop", close=moment),)))
    assert bench.ask("stop") == {}
    assert bench.hung_up == 1
    assert bench.machine.control.state.value == state


@pytest.mark.parametrize("moment", list(Moment))
def test_rule_with_death_ends_the_process_without_reply(moment: Moment) -> None:
    bench = _Bench(Script(command=(CommandRule(name="backup", die=moment),)))
    assert bench.backup(MemorySink()) == {}
    assert [end.signal_name for end in bench.ends] == ["SIGKILL"]


def test_scripted_event_and_death_come_at_their_time() -> None:
    bench = _Bench(
        Script(event=(EventRule(at_s=1.0, name="E"),), process=ProcessRules(die_at_s=2.0))
    )
    bench.run(1.5)
    assert [m for m in bench.received if m.get("event") == "E"] != []
    assert bench.ends == []
    bench.run(1)
    assert len(bench.ends) == 1


def test_quit_replies_then_ends() -> None:
    bench = _Bench()
    bench.backup(MemorySink(), speed=_MIB)
    assert bench.ask("quit") == {"return": {}, "id": 1}
    assert [end.signal_name for end in bench.ends] == [""]


def test_node_added_for_a_backup_is_backed_up_and_removed_twice_over() -> None:
    bench = _Bench()
    bench.host.add_disk("/tpm", 4 * _MIB)
    file = {"driver": "file", "filename": "/tpm", "node-name": "tpmstate0-backup-file"}
    below = {"driver": "raw", "file": file, "size": 2 * _MIB, "read-only": True}
    name, group = "drive-tpmstate0-backup", "throttle-tpmstate0"
    bench.ask("object-add", qom_type="throttle-group", id=group)
    for _ in range(2):
        added = bench.ask(
            "blockdev-add", driver="throttle", node_name=name, throttle_group=group, file=below
        )
        assert added == {"return": {}, "id": 1}
        sink = MemorySink()
        assert "return" in bench.backup(sink, devlist=f"drive-scsi1,{name}", fleecing=False)
        bench.run(5)
        assert bench.status()["total"] == 6 * _MIB
        assert bench.status()["status"] == "done"
        assert bench.ask("blockdev-del", node_name=name) == {"return": {}, "id": 1}
    names = [node["node-name"] for node in bench.ask("query-named-block-nodes")["return"]]
    assert name not in names


def test_missing_fleecing_and_long_node_name_are_refused() -> None:
    bench = _Bench()
    reply = bench.backup(MemorySink(), fleecing=True)
    assert reply["error"]["class"] == "DeviceNotFound"
    file = {"driver": "file", "filename": "/d0"}
    reply = bench.ask("blockdev-add", driver="raw", node_name="x" * 32, file=file)
    assert reply["error"]["desc"] == "Node name too long"


def test_guest_write_with_fleecing_and_stalled_reader_goes_through_at_once() -> None:
    bench = _Bench(sizes=(8,))
    bench.host.add_disk("/fleece", 8 * _MIB)
    bench.ask(
        "blockdev-add",
        driver="raw",
        node_name="drive-scsi0-fleecing",
        file={"driver": "file", "filename": "/fleece"},
    )
    before = bytes(bench.disks[0].read(0, 8 * _MIB))
    sink = MemorySink(allowance_bytes=_MIB)
    bench.backup(sink, fleecing=True)
    bench.run(1)
    outcomes: list[int] = []
    bench.machine.guest_write("drive-scsi0", 6 * _MIB + 7, bytes(_MIB), outcomes.append)
    assert outcomes == [0]
    sink.read_on()
    bench.run(1)
    assert _disks_of(bytes(sink.data), {1: 8 * _MIB})[1] == before


# -- the agent -----------------------------------------------------------------------------------


def test_agent_with_slow_freeze_answers_late_and_keeps_order() -> None:
    bench = _Bench(Script(agent=AgentRules(freeze_delay_s=30)))
    bench.ask_agent("guest-fsfreeze-freeze")
    bench.ask_agent("guest-ping")
    bench.run(29)
    assert bench.agent_lines == []
    bench.run(2)
    assert bench.agent_lines == [b'{"return": 1}\n', b'{"return": {}}\n']


def test_agent_with_failing_thaw_stays_frozen() -> None:
    bench = _Bench(Script(agent=AgentRules(thaw_error="thaw broke")))
    bench.ask_agent("guest-fsfreeze-freeze")
    bench.ask_agent("guest-fsfreeze-thaw")
    assert b"thaw broke" in bench.agent_lines[-1]
    assert bench.agent.is_frozen


def test_agent_with_stale_replies_sends_them_first_on_each_connection() -> None:
    bench = _Bench(Script(agent=AgentRules(stale_replies=({"return": 7},))))
    bench.ask_agent("guest-sync-delimited", id=9)
    assert bench.agent_lines == [b'{"return": 7}\n', b'\xff{"return": 9}\n']


@pytest.mark.parametrize(("rules", "count"), [
    (AgentRules(dies_at="guest-fsfreeze-freeze"), 0),
    (AgentRules(dies_after="guest-fsfreeze-freeze"), 1),
])  # fmt: skip
def test_agent_dying_around_freeze(rules: AgentRules, count: int) -> None:
    bench = _Bench(Script(agent=rules))
    bench.ask_agent("guest-fsfreeze-freeze")
    bench.ask_agent("guest-ping")
    bench.run(5)
    assert len(bench.agent_lines) == count
    assert bench.agent.is_frozen == bool(count)
    assert not bench.agent.is_up


def test_guest_while_frozen_or_stopped_does_not_write() -> None:
    bench = _Bench(Script(guest=GuestRules(writes_per_s=100)))
    guest = Guest(bench.machine)
    guest.start()
    bench.ask_agent("guest-fsfreeze-freeze")
    bench.run(1)
    assert guest.write_count == 0
    bench.ask_agent("guest-fsfreeze-thaw")
    bench.run(1)
    count = guest.write_count
    assert count > 50
    bench.ask("stop")
    bench.run(1)
    assert guest.write_count == count


def test_powerdown_with_slow_or_deaf_guest_takes_its_time() -> None:
    slow = _Bench(Script(guest=GuestRules(shutdown_delay_s=60)))
    deaf = _Bench(Script(guest=GuestRules(ignores_shutdown=True)))
    for bench in (slow, deaf):
        assert "return" in bench.ask("system_powerdown")
        bench.run(59)
        assert bench.machine.control.state.value == "running"
        bench.run(600)
    assert slow.machine.control.state.value == "shutdown"
    assert deaf.machine.control.state.value == "running"


def test_agent_shutdown_powers_the_guest_off_without_reply() -> None:
    bench = _Bench()
    bench.ask_agent("guest-shutdown")
    bench.run(1)
    assert bench.agent_lines == []
    assert bench.machine.control.state.value == "shutdown"
