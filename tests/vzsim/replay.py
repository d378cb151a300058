"""Acts out a recorded session of real QEMU against simulated processes.

Each client message is sent at its recorded time (virtual). What came back and what was recorded is
collected per channel; comparing is left to the tests.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from vzdump_qemu.errors import ConfigError
from vzsim.fakeqmp.bitmaps import Bitmap
from vzsim.fakeqmp.disks import CrampedDisk
from vzsim.fakeqmp.machine import Machine, ProcessEnd
from vzsim.fakeqmp.memory import MemoryHost, MemorySink, VirtualTimebase
from vzsim.fakeqmp.nbd_session import bitmap_extents
from vzsim.fakeqmp.run_state import RunState
from vzsim.fakeqmp.schema import Dialect
from vzsim.fakeqmp.script import AgentPresence, AgentRules, BackupRules, GuestRules, Script
from vzsim.fakeqmp.storage_host import MemoryStorage
from vzsim.launch import attach_disks, plan_launch
from vzsim.launch_daemon import carry_out, plan_daemon

DATA = Path(__file__).parents[1] / "data" / "qmp"
_MIB = 1 << 20

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
_PACES = {"pve-backup-two-disks": 400 * _MIB, "stock-push-grouped": 200 * _MIB}
# Room on the full file system.
_ROOM = {
    "stock-pull-fleece-full": 4 * _MIB,
    "stock-pull-fleece-full-guest": 75 * 65536,
    "stock-push-enospc": 4 * _MIB,
    "stock-push-grouped": 2 * _MIB,
}
# Commands that fix a point in time.
_INSTANTS = ("transaction", "qom-set", "backup-access-setup")
_PATHS: dict[str, dict[str, Any]] = {
    "/mnt/full/vzdump.vma": {"capacity_bytes": 5 * _MIB},
    "exec:exit 3": _GONE,
}


class Replay:
    def __init__(self, session: str) -> None:
        self.session = session
        lines = (DATA / f"{session}.jsonl").read_text("utf-8").splitlines()
        self.records = [json.loads(line) for line in lines]
        self.host = MemoryHost()
        self.timebase = VirtualTimebase(1_700_000_000.0)
        self.start_s = self.timebase.now_s()
        self.got: dict[str, list[Any]] = {}
        self.want: dict[str, list[Any]] = {}
        self.ends: list[ProcessEnd] = []
        self.fd = 100
        self.passed = 0
        self.storage = MemoryStorage(self.host.disks)
        self.monitors: dict[str, Any] = {}
        self.early: dict[str, bytes] = {}
        # Made-up node names of the recording, and ours.
        self.names: dict[str, str] = {}
        self.kept: dict[str, bytes] = {}
        self.checked_count = 0
        self._make_disks()
        self.machine: Any = None
        self.daemon: Any = None

    def _start(self, index: int) -> None:
        """A process is started; a refusal must be the recorded one."""
        record = self.records[index]
        channel = record["channel"]
        words = record["note"].removeprefix("process started: ")
        program, *pairs = re.split(r" (?=--?[a-zA-Z])", words)
        arguments = [word for pair in pairs for word in pair.split(" ", 1)]
        self.monitors = {
            name: monitor
            for name, monitor in self.monitors.items()
            if (name == "qsd") != (channel == "qsd")
        }
        try:
            if channel == "qsd":
                self.daemon = self._make_daemon(arguments)
            else:
                self.machine = self._make_machine(arguments)
        except ConfigError as error:
            end = next(
                r["note"]
                for r in self.records[index:]
                if r["channel"] == channel and "process ended" in r.get("note", "")
            )
            assert f"exit status 1; standard error: {program}: {error}" in end
            self.checked_count += 1

    def _make_daemon(self, arguments: list[str]) -> Machine:
        plan = plan_daemon(arguments)
        daemon = Machine(
            plan.machine_config(),
            script=Script(),
            timebase=self.timebase,
            host=self.host,
            on_end=self.ends.append,
            storage=self.storage,
        )
        try:
            carry_out(daemon, plan)
        except ConfigError:
            daemon.die("SIGKILL")
            raise
        daemon.start()
        return daemon

    def _make_machine(self, arguments: list[str]) -> Machine:
        plan = plan_launch(arguments)
        greeting = next(r["message"] for r in self.records if "QMP" in r.get("message", ""))
        is_pve = greeting["QMP"]["version"]["qemu"]["major"] == 10
        plan.dialect = Dialect.PVE if is_pve else Dialect.UPSTREAM
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
            storage=self.storage,
        )
        try:
            attach_disks(machine, plan)
        except ConfigError:
            machine.die("SIGKILL")
            raise
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

    def _make_disks(self) -> None:
        started = [r["note"] for r in self.records if "process started" in r.get("note", "")]
        options = re.findall(r" --?(?:drive|blockdev) (\{.*?\}(?= -)|\S+)", " ".join(started))
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
        for value in options:
            for path in re.findall(r"(?:file=|filename\": \")(/[^,\"]+)", value):
                device = re.search(r"drive-[a-z]+\d+", value)
                name = device.group().removesuffix("-fleecing") if device else ""
                is_alone = len(options) == 1 and "virtserialport" not in started[0]
                single = re.search(r'"total": (\d+)', text) if is_alone else None
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

        self.storage.missing_folders.add("/run/vm/missing")
        if not self.session.startswith("pve"):
            self._make_stock_disks(text)

    def _make_stock_disks(self, text: str) -> None:
        found = set(re.findall(r"(?:file=|\"filename\\*\": \\*\")(/[^,\"\\]+)", text))
        for path in sorted(found):
            if "missing" in path or "xxx" in path:
                continue
            number = re.search(r"(\d)\.(?:raw|qcow2)$", path)
            index = number.group(1) if number else "0"
            size = re.search(r'"(?:fleece-scsi0|push)", "len": (\d+)', text)
            image = rf'"virtual-size": (\d+), "filename": "\S+-{index}[.]\w+"'
            shown = re.search(rf'{image}[^}}]+"format": "(?:raw|qcow2)"', text)
            known = shown or (size if index == "0" else None)
            default = 4 * _MIB if index == "1" else 8 * _MIB
            bytes_count = int(known.group(1)) if known else default
            disk: Any = self.host.add_disk(path, bytes_count)
            if path.startswith("/mnt/full"):
                self.host.disks[path] = CrampedDisk(disk, room_bytes=_ROOM[self.session])
            if path.endswith(".raw"):
                self.host.raw_paths.add(path)
        if self.session == "qsd-bitmap":
            daily = Bitmap(name="daily", size_bytes=8 * _MIB, persistent=True)
            daily.note(_MIB, 131072)
            self.storage.bitmaps["/var/lib/vz/images/100/vm-100-disk-0.qcow2"] = [daily]

    @property
    def checkable_count(self) -> int:
        """How many records say what a client read or why a process did not start."""
        notes = [record.get("note", "") for record in self.records]
        parts = ("equal to the disk at", "dirty-bitmap map", "exit status 1")
        return sum(any(part in note for part in parts) for note in notes) + sum(
            note.startswith("NBD read of export") and "failed" in note for note in notes
        )

    # -- acting --------------------------------------------------------------------------------

    def run(self) -> None:
        for index, record in enumerate(self.records):
            self.timebase.advance_to(self.start_s + record["t_ms"] / 1000)
            match record["dir"]:
                case "C":
                    self._send(record)
                case "S":
                    self._happen(record)
                    self._expect(record)
                case _ if "process started" in record["note"]:
                    self._start(index)
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
            text = re.sub(
                r"#block\d+", lambda found: self.names[found.group()], json.dumps(message)
            )
            raw += text.encode() + b"\n"
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
        elif not self._process(channel).is_dead:
            self.monitors[channel].receive(raw, fds)

    def _process(self, channel: str) -> Machine:
        process: Machine = self.daemon if channel == "qsd" else self.machine
        return process

    def _prepare(self, message: Any) -> None:
        """Files that the client made before it asked, and points in time to compare with."""
        if isinstance(message, dict) and message.get("execute") in _INSTANTS:
            for path, disk in self.host.disks.items():
                self.kept[path] = bytes(disk.read(0, disk.size_bytes))
        if self.session == "stock-push-grouped" and message.get("id") == 7:
            self._make_room()
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
            self._process(channel).die("SIGKILL")
        elif note == "more room is made on the file system":
            self._make_room()
        elif note == "an NBD client connects and stays":
            machine.exports.find_export("d").client_came()
        elif channel == "nbd":
            self._check_export(note)
        elif note.startswith("process ended: exit status 0") and not self._process(channel).is_dead:
            # Processes without a client end without being seen.
            self._process(channel).terminate()
        elif note.startswith("typed into a shell inside the guest: "):
            self._act_in_guest(note.split(": ", 1)[1])

    def _make_room(self) -> None:
        for disk in self.host.disks.values():
            if isinstance(disk, CrampedDisk):
                disk.room_bytes = 64 * _MIB

    def _check_export(self, note: str) -> None:
        """What a client read over NBD in the recording, read here."""
        process = self.daemon if self.session.startswith("qsd") else self.machine
        if "equal to the disk" in note:
            named = re.search(r'export "([^"]+)"', note)
            name = named.group(1) if named else process.exports.export_names()[0]
            export = process.exports.find_export(name)
            path = export.node.backing.path if export.node.backing else export.node.path
            disk = self.host.disks[path]
            content = bytes(export.disk.read(0, export.disk.size_bytes))
            assert content == self.kept.get(path, bytes(disk.read(0, disk.size_bytes)))
            self.checked_count += 1
        elif "dirty-bitmap map" in note:
            export = process.exports.find_export("d")
            found = re.findall(r"(\d+)\s+(\d+)\s+(\d)\s+(?:clean|dirty)", note)
            want = [(int(length), int(flag)) for _, length, flag in found]
            assert bitmap_extents(export.bitmaps[0], 0, export.disk.size_bytes) == want
            self.checked_count += 1
        elif "failed" in note and "NBD read of" in note:
            assert process.exports.find_export(re.findall(r'export "([^"]+)"', note)[0]) is None
            self.checked_count += 1

    def _connect(self, channel: str) -> None:
        def write(data: bytes) -> None:
            for line in data.lstrip(b"\xff").splitlines():
                self.got.setdefault(channel, []).append(
                    (record_time(self), json.loads(line), data[:1] == b"\xff")
                )

        def record_time(replay: Replay) -> float:
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
            self.monitors[channel] = self._process(channel).add_monitor()
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

    def _write_file(self) -> None:
        """The guest writes a file of 10 MiB, three requests at a time."""
        outcomes: list[int] = []
        for offset in range(0, 10 * _MIB, _MIB):
            if len(outcomes) < offset // _MIB - 2:
                return
            self.machine.requests.submit("drive-scsi0", offset, b"w" * _MIB, outcomes.append)

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
        elif line.startswith("dd if=") and self.session == "stock-pull-fleece-full-guest":
            self.timebase.call_later(0.2, self._write_file)
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
        message = record["message"]
        if not isinstance(message, dict) or record["channel"] == "qsd":
            if isinstance(message, dict) and message.get("event") == "BLOCK_EXPORT_DELETED":
                self._end_daemon(record)
            return
        control = self.machine.control
        if self.session == "stock-pull-fleece-full-guest" and message.get("event") != "SHUTDOWN":
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

    def _end_daemon(self, record: dict[str, Any]) -> None:
        """A daemon that ends by a signal tells so only by its exports' going."""
        later = self.records[self.records.index(record) + 1 :]
        following = next(r for r in later if r["channel"] == "qsd")
        if following.get("note") == "end of file from server":
            self.daemon.terminate()

    def _expect(self, record: dict[str, Any]) -> None:
        message = record["message"]
        if isinstance(message, dict) and "return" in message:
            self._learn_names(record["channel"], message)
        self.want.setdefault(record["channel"], []).append(
            (record["t_ms"], message, record.get("prefix_hex", "") == "ff")
        )

    def _learn_names(self, channel: str, theirs: dict[str, Any]) -> None:
        """Pair the made-up names in a reply with ours: the same places hold the same nodes."""
        texts = [json.dumps(theirs["return"])]
        for _, message, _ in self.got.get(channel, [])[-1:]:
            texts.append(json.dumps(message.get("return")))
        found = [re.findall(r"#block\d+", text) for text in texts]
        if len(found) == 2 and len(found[0]) == len(found[1]):
            self.names.update(zip(*found, strict=True))
