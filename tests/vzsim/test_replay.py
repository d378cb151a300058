"""Replays recorded sessions of real QEMU against the simulated machine.

Each client message is sent at its recorded time (virtual); replies are compared per channel, events
per channel, both in order. Left out of the comparison: times, uuids, made-up node names, amounts of
progress, and the status of a poll that fell within the instant in which a job ended.
"""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from vzsim.fakeqmp.machine import Machine, ProcessEnd
from vzsim.fakeqmp.memory import MemoryHost, MemorySink, VirtualTimebase
from vzsim.fakeqmp.run_state import RunState
from vzsim.fakeqmp.schema import Dialect
from vzsim.fakeqmp.script import AgentPresence, AgentRules, BackupRules, GuestRules, Script
from vzsim.launch import attach_disks, plan_launch

_DATA = Path(__file__).parents[1] / "data" / "qmp"
_MIB = 1 << 20

# Sessions (by pattern) that need what is not simulated, each with its reason.
_NOT_COVERED = {
    "pve-status-finish-migrate": "migrate, migrate_cancel: the machine does not migrate",
    "stock-pull-*": "pull machinery: transactions, blockdev-backup, NBD exports",
    "stock-push-*": "pull machinery: blockdev-backup",
    "stock-bitmap*": "pull machinery: dirty bitmaps and transactions",
    "stock-snapshot-access": "pull machinery: filter nodes",
    "qsd-*": "another program: the storage daemon",
}
# Of sessions with several machines the first one is replayed (pve-status-migration: the machine
# that waits for a migration).
# Commands left out of sessions that are covered otherwise: pull machinery and foreign jobs.
_SKIPPED_COMMANDS = {
    "nbd-server-start", "nbd-server-stop", "block-export-add", "block-export-del",
    "query-block-exports", "blockdev-backup", "transaction", "drive-mirror",
}  # fmt: skip
# In this session a foreign job comes first; these ids belong to it.
_SKIPPED_IDS = {"pve-blocked-operations": {9, 11, 12, 13}}
_SKIPPED_EVENTS = {"BLOCK_EXPORT_DELETED", "BLOCK_JOB_READY"}

_FULL = {"errno_code": 28}
_GONE = {"errno_code": 32}
# What the descriptors of a session lead to, in the order in which they are passed.
_TARGETS: dict[str, list[dict[str, Any]]] = {
    "pve-backup-pipe": [{"allowance_bytes": _MIB}],
    "pve-reader-gone": [_GONE],
    "pve-reader-gone-small": [_GONE],
    "pve-reader-gone-midway": [{"allowance_bytes": 2 * _MIB}],
    "pve-guest-write-broken-target": [_FULL],
    "pve-target-full": [{"capacity_bytes": 5 * _MIB}, _FULL],
    "pve-fd-errors": [*[{}] * 6, {"errno_code": 9}],
}
# How fast the disks of the recording machine were, where a poll depends on it.
_PACES = {"pve-backup-two-disks": 400 * _MIB}
_PATHS: dict[str, dict[str, Any]] = {
    "/mnt/full/vzdump.vma": {"capacity_bytes": 5 * _MIB},
    "exec:exit 3": _GONE,
}


def _sessions() -> list[str]:
    stems = sorted(path.stem for path in _DATA.glob("*.jsonl"))
    return [s for s in stems if not any(fnmatch(s, pattern) for pattern in _NOT_COVERED)]


class _Replay:
    def __init__(self, session: str) -> None:
        self.session = session
        lines = (_DATA / f"{session}.jsonl").read_text("utf-8").splitlines()
        self.records = [json.loads(line) for line in lines]
        self.host = MemoryHost()
        self.timebase = VirtualTimebase(1_700_000_000.0)
        self.start_s = self.timebase.now_s()
        self.got: dict[str, list[Any]] = {}
        self.want: dict[str, list[Any]] = {}
        self.ends: list[ProcessEnd] = []
        self.skipped: set[tuple[str, Any]] = set()
        self.fd = 100
        self.passed = 0
        self.machine = self._machine()
        self.monitors: dict[str, Any] = {}
        self.early: dict[str, bytes] = {}

    def _machine(self) -> Machine:
        note = next(r["note"] for r in self.records if "process started" in r.get("note", ""))
        words = [part.split(" ", 1) for part in re.split(r" (?=-[a-zA-Z])", note)[1:]]
        plan = plan_launch([word for pair in words for word in pair])
        greeting = next(r["message"] for r in self.records if "QMP" in r.get("message", ""))
        is_pve = greeting["QMP"]["version"]["qemu"]["major"] == 10
        plan.dialect = Dialect.PVE if is_pve else Dialect.UPSTREAM
        self._make_disks(plan.block_options)
        script = Script(
            agent=self._agent_rules(),
            backup=BackupRules(bytes_per_s=_PACES.get(self.session, 4000 * _MIB)),
            guest=GuestRules(),
        )
        machine = Machine(
            plan.machine_config(),
            script=script,
            timebase=self.timebase,
            host=self.host,
            on_end=self.ends.append,
        )
        attach_disks(machine, plan)
        machine.start()
        return machine

    def _agent_rules(self) -> AgentRules:
        if "noagent" in str(self.records[0]):
            return AgentRules(state=AgentPresence.ABSENT)
        opened = [
            r["t_ms"]
            for r in self.records
            if r.get("message", {}) and "VSERPORT_CHANGE" in str(r["message"])
        ]
        return AgentRules(
            starts_after_s=(opened[0] if opened else 2000) / 1000,
            filesystem_count=1 + any(r.get("message") == {"return": 2} for r in self.records),
        )

    def _make_disks(self, options: list[tuple[str, str]]) -> None:
        text = "\n".join(json.dumps(record) for record in self.records)
        sizes = {
            device: int(size)
            for device, size in re.findall(r'"device": "([^"]+)", "len": (\d+)', text)
        }
        sizes |= {
            device: int(size)
            for device, size in re.findall(
                r'"device": "(drive-[^"]+)", "node-name": "[^"]+",[^}]*?"size": (\d+)', text
            )
        }
        paths = {"/var/lib/vz/images/100/vm-100-fleece-0.qcow2": sizes.get("drive-scsi0", 0)}
        mismatch = re.search(r"sector count (\d+) != (\d+)", text)
        for _, value in options:
            for path in re.findall(r"(?:file=|filename\": \")(/[^,\"]+)", value):
                device = re.search(r"drive-[a-z]+\d+", value)
                name = device.group().removesuffix("-fleecing") if device else ""
                single = re.search(r'"total": (\d+)', text) if len(options) <= 3 else None
                fallback = int(single.group(1)) if single else 8 * _MIB
                paths[path] = sizes.get(name, fallback)
        if mismatch:
            paths["/var/lib/vz/images/100/vm-100-fleece-1.raw"] = int(mismatch.group(1)) * 512
            paths["/var/lib/vz/images/100/vm-100-disk-1.raw"] = int(mismatch.group(2)) * 512
        for path, size in paths.items():
            self.host.add_disk(path, size)
        self.host.files["/var/lib/vz/dump/100.conf"] = b"name: x\n"
        self.host.files["/var/lib/vz/dump/100.fw"] = b"[OPTIONS]\n"
        self.host.files["/var/lib/vz/dump/big.conf"] = bytes(65536)
        self.host.existing_paths |= {"/var/lib/vz/dump", "/var/lib/vz/dump/existing.vma"}
        self.host.open_errors["/var/lib/vz/dump/fifo"] = 6

    # -- acting --------------------------------------------------------------------------------

    def run(self) -> None:
        for index, record in enumerate(self.records):
            if record["channel"] == "vm" and "process started" in record.get("note", ""):
                if index > 0:
                    return
                continue
            self.timebase.advance_to(self.start_s + record["t_ms"] / 1000)
            match record["dir"]:
                case "C":
                    self._send(record)
                case "S":
                    self._happen(record)
                    self._expect(record)
                case _:
                    self._act(record)
        self.timebase.advance_to(self.timebase.now_s() + 5)

    def _send(self, record: dict[str, Any]) -> None:
        channel = record["channel"]
        if "raw" in record:
            raw = record["raw"].encode("latin-1")
        else:
            message = record["message"]
            raw = bytes.fromhex(record.get("prefix_hex", ""))
            raw += json.dumps(message).encode() + b"\n"
            if isinstance(message, dict) and (
                message.get("execute") in _SKIPPED_COMMANDS
                or message.get("id") in _SKIPPED_IDS.get(self.session, ())
            ):
                self.skipped.add((channel, str(message.get("id"))))
                return
            self._prepare(message)
            if self.session == "pve-hmp":
                self.host.sinks["/var/lib/vz/dump/vzdump-qemu-100-2026_01_02-03_04_05.vma"] = (
                    MemorySink()
                )
        fds = []
        for _ in range(record.get("fds", 0)):
            self.fd += 1
            kinds = _TARGETS.get(self.session, [{}])
            kind = kinds[min(self.passed, len(kinds) - 1)]
            self.host.sinks[self.fd] = MemorySink(**kind)
            self.passed += 1
            fds.append(self.fd)
        if channel in self.early:
            self.early[channel] += raw
        elif channel.startswith("qga"):
            if self.machine.agent is not None:
                self.machine.agent.receive(raw)
        elif not self.machine.is_dead:
            self.monitors[channel].receive(raw, fds)

    def _prepare(self, message: Any) -> None:
        """Files that the client made before it asked."""
        if not isinstance(message, dict) or "backup" not in str(message.get("execute")):
            return
        target = str(message.get("arguments", {}).get("backup-file", ""))
        if self.session == "pve-targets" and "missing" not in target:
            self.host.sinks[target] = MemorySink(**_PATHS.get(target, {}))
        elif target in _PATHS:
            self.host.sinks[target] = MemorySink(**_PATHS[target])

    def _act(self, record: dict[str, Any]) -> None:
        note, channel, machine = record["note"], record["channel"], self.machine
        if note.startswith("connected to"):
            self._connect(channel)
        elif note == "client closes the connection":
            self._disconnect(channel)
        elif note == "a reader opens the fifo":
            del self.host.open_errors["/var/lib/vz/dump/fifo"]
        elif note == "pipe reader: reading again":
            self.host.sinks[self.fd].read_on()
        elif note.startswith("pipe reader closed after"):
            self.host.sinks[self.fd].break_off()
        elif note.startswith("signal sent") or "SIGKILL" in note:
            machine.die("SIGKILL")
        elif note.startswith("typed into a shell inside the guest: "):
            self._act_in_guest(note.split(": ", 1)[1])

    def _connect(self, channel: str) -> None:
        def write(data: bytes) -> None:
            for line in data.lstrip(b"\xff").splitlines():
                self.got.setdefault(channel, []).append(
                    (record_time(self), json.loads(line), data[:1] == b"\xff")
                )

        def record_time(replay: _Replay) -> float:
            return (replay.timebase.now_s() - replay.start_s) * 1000

        if channel == "qga2" and "qga2" not in self.early:
            # Accepted by the kernel, not by the machine: the first client is still there.
            self.early["qga2"] = b""
            return
        if channel.startswith("qga"):
            assert self.machine.agent is not None
            self.machine.agent.connect(write, lambda: None)
            return
        if channel not in self.monitors:
            self.monitors[channel] = self.machine.add_monitor()
        self.monitors[channel].connect(write, lambda: None)

    def _disconnect(self, channel: str) -> None:
        if channel.startswith("qga"):
            assert self.machine.agent is not None
            self.machine.agent.disconnect()
            if channel == "qga" and "qga2" in self.early:
                self._connect("qga2")
                self.machine.agent.receive(self.early.pop("qga2"))
        else:
            self.monitors[channel].disconnect()

    def _act_in_guest(self, line: str) -> None:
        machine, agent = self.machine, self.machine.agent
        assert agent is not None
        if line.startswith("poweroff"):
            machine.control.guest_powers_off()
        elif line.startswith("echo mem"):
            machine.control.guest_suspends()
        elif line.startswith("echo c >"):
            machine.control.halt_for(
                RunState.GUEST_PANICKED, event="GUEST_PANICKED", data={"action": "pause"}
            )
        elif line.startswith("killall"):
            agent.go_down()
            if "exit 3" in line:
                agent.rules = AgentRules(freeze_error="fsfreeze hook has failed with status 3")
            if "sleep 4" in line:
                agent.rules = AgentRules(freeze_delay_s=4.0, thaw_delay_s=4.0)
            if "-b guest" in line:
                names = re.search(r"-b (\S+)", line)
                assert names is not None
                agent.rules = AgentRules(disabled=tuple(names.group(1).split(",")))
            if "qemu-ga -d" in line:
                self.timebase.call_later(1.0, agent.come_up)
        elif line.startswith("qemu-ga"):
            agent.come_up()

    def _happen(self, record: dict[str, Any]) -> None:
        """Happenings that show only in their events."""
        message, control = record["message"], self.machine.control
        if not isinstance(message, dict):
            return
        data = message.get("data")
        match message.get("event"):
            case "WATCHDOG":
                control.halt_for(RunState.WATCHDOG, event="WATCHDOG", data=data)
            case "BLOCK_IO_ERROR" if control.is_running:
                control.halt_for(RunState.IO_ERROR, event="BLOCK_IO_ERROR", data=data)
            case "BLOCK_IO_ERROR":
                self.machine.emit("BLOCK_IO_ERROR", data)
            case "STOP" if self.session == "pve-status-io-error" and control.is_running:
                control.halt_for(RunState.IO_ERROR)
            case "SHUTDOWN" if data == {"guest": False, "reason": "host-signal"}:
                if not self.machine.is_dead:
                    self.machine.terminate()
            case "RESET" if data == {"guest": True, "reason": "guest-reset"}:
                control.guest_resets()
            case "STOP" if self.session == "pve-status-debug" and control.is_running:
                is_first = record["t_ms"] < 100
                control.halt_for(RunState.PAUSED if is_first else RunState.DEBUG)
            case "RESUME" if self.session == "pve-status-debug" and record["t_ms"] < 1000:
                control.enter(RunState.RUNNING, event="RESUME")

    def _expect(self, record: dict[str, Any]) -> None:
        message = record["message"]
        if (
            isinstance(message, dict)
            and (
                record["channel"],
                str(message.get("id")),
            )
            in self.skipped
        ):
            return
        self.want.setdefault(record["channel"], []).append(
            (record["t_ms"], message, record.get("prefix_hex", "") == "ff")
        )


_VOLATILE = {
    "transferred", "zero-bytes", "start-time", "end-time", "uuid", "UUID", "node-name",
    "current-progress", "offset", "actual-size", "fd", "bitmap-node-name", "pid", "busy",
    "qom-path", "supported_commands",
}  # fmt: skip


def _normal(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: "*" if key in _VOLATILE else _normal(item)
            for key, item in value.items()
            if key != "timestamp"
        }
    if isinstance(value, list):
        return [_normal(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"#block\d+", "#block", value)
    if isinstance(value, int) and value > 10**15:
        return "*" if value != 9223372036854775807 else value
    return value


def _events(entries: list[Any]) -> list[Any]:
    found = []
    for _, message, _ in entries:
        if isinstance(message, dict) and "event" in message:
            if message["event"] in _SKIPPED_EVENTS:
                continue
            found.append(_normal(message))
    return _without_drains(found)


def _without_drains(events: list[Any]) -> list[Any]:
    """Guests' drivers drain at times of their own: a pause that ends at once is left out."""
    kept: list[Any] = []
    for event in events:
        if (
            kept
            and event["event"] == "JOB_STATUS_CHANGE"
            and event["data"]["status"] == "running"
            and kept[-1] == {**event, "data": {**event["data"], "status": "paused"}}
        ):
            kept.pop()
        else:
            kept.append(event)
    return kept


def _replies(entries: list[Any]) -> list[Any]:
    return [
        (t_ms, message, prefixed)
        for t_ms, message, prefixed in entries
        if not (isinstance(message, dict) and "event" in message)
    ]


def _compare_reply(got: Any, want: Any) -> None:
    got_message, want_message = got[1], want[1]
    assert got[2] == want[2]
    value, expected = got_message.get("return"), want_message.get("return")
    if isinstance(expected, dict) and "finishing" in expected and "status" in expected:
        assert value is not None
        if value["status"] != expected["status"] and "active" in (
            value["status"], expected["status"],
        ):  # fmt: skip
            # The poll and the end of the job fell into the same instant.
            return
        assert _normal(value) == _normal(expected)
    elif isinstance(expected, list) and expected and "image" in str(expected[0]):
        _compare_nodes(value, expected)
    elif isinstance(expected, list) and expected and "frontend-open" in expected[0]:
        states = {entry["label"]: entry["frontend-open"] for entry in value}
        assert states.get("qga0") == next(
            entry["frontend-open"] for entry in expected if entry["label"] == "qga0"
        )
    elif isinstance(expected, dict) and "supported_commands" in expected:
        names = {entry["name"]: entry["enabled"] for entry in expected["supported_commands"]}
        assert {e["name"]: e["enabled"] for e in value["supported_commands"]} == names
    elif isinstance(expected, dict) and ("kernel-release" in expected or "pid" in expected):
        assert value.keys() == expected.keys()
    elif isinstance(expected, str) and expected.startswith("Backup status"):
        volatile = r"(time|uuid): .*|\d+ \(\d+%\)"
        assert re.sub(volatile, "", value) == re.sub(volatile, "", expected)
    else:
        assert _normal(got_message) == _normal(want_message)


def _compare_nodes(value: Any, expected: Any) -> None:
    """Nodes of the guest's disks: same members, same sizes. Filter nodes are not simulated."""
    by_device = {entry.get("device"): entry for entry in value}
    for entry in expected:
        if "inserted" in entry:
            ours = by_device[entry["device"]]
            assert ours.keys() == entry.keys()
            assert ours["inserted"].keys() - {"image"} <= entry["inserted"].keys()


@pytest.mark.parametrize("session", _sessions())
def test_machine_given_recorded_messages_answers_as_recorded(session: str) -> None:
    replay = _Replay(session)
    replay.run()
    for channel, want in replay.want.items():
        got = replay.got.get(channel, [])
        want_replies, got_replies = _replies(want), _replies(got)
        for ours, theirs in zip(got_replies, want_replies, strict=False):
            _compare_reply(ours, theirs)
        assert [m for _, m, _ in got_replies[len(want_replies) :]] == []
        assert [m for _, m, _ in want_replies[len(got_replies) :]] == []
        if session not in _SKIPPED_IDS:
            assert _events(got) == _events(want)


def test_list_of_recordings_not_covered_has_no_dead_entry() -> None:
    stems = {path.stem for path in _DATA.glob("*.jsonl")}
    assert len(_sessions()) >= 65
    for pattern, reason in _NOT_COVERED.items():
        assert any(fnmatch(stem, pattern) for stem in stems), reason
