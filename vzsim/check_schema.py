"""``vzsim check-schema``: the simulated QEMU held against the schema of a real one.

Owns running the session of `check_schema_steps` on each dialect, looking at every reply and event,
trying the argument cases of `check_schema_cases`, and the report. What the real program has and the
simulator lacks is no deviation but listed; what the simulator does otherwise is one.
"""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.units import MIB
from vzsim.check_schema_cases import argument_cases
from vzsim.check_schema_server import InstantLibrary
from vzsim.check_schema_steps import Step, steps_of
from vzsim.fakeqmp.disks import CrampedDisk, Disk, MemoryDisk
from vzsim.fakeqmp.machine import Machine, MachineConfig
from vzsim.fakeqmp.memory import MemoryHost, MemorySink, VirtualTimebase
from vzsim.fakeqmp.monitor import Monitor
from vzsim.fakeqmp.nodes import Node
from vzsim.fakeqmp.qapi import QapiSchema
from vzsim.fakeqmp.run_state import RunState
from vzsim.fakeqmp.schema import (
    CommandError,
    Dialect,
    allows_oob,
    check_command,
    command_names,
    schema_of,
)
from vzsim.fakeqmp.script import Script
from vzsim.fakeqmp.storage_host import MemoryStorage

_ERROR_CLASSES = (
    "GenericError", "CommandNotFound", "DeviceNotActive", "DeviceNotFound", "KVMMissingCap",
)  # fmt: skip
_QUERIES = (
    "query-status", "query-block", "query-named-block-nodes", "query-jobs", "query-block-jobs",
    "query-block-exports", "query-migrate", "query-fdsets", "query-chardev",
)  # fmt: skip
# The real one refuses it too, save in a state that is not simulated.
_ONLY_REFUSED = ("migrate-pause",)
_IMAGES = ("/d0", "/d1", "/push", "/spare", "/q.qcow2", "/bare", "/slow", "/fleece.qcow2")
_SMALL_IMAGES = ("/d1", "/fleece4")
_FD = 7


@dataclass(slots=True, kw_only=True)
class SchemaReport:
    """What was found for one dialect.

    Attributes:
        without_effect: arguments that are taken and change nothing, as ``command: name``.
        deviations: one line each.
    """

    dialect: Dialect
    simulated: list[str] = field(default_factory=list)
    not_simulated: list[str] = field(default_factory=list)
    without_effect: list[str] = field(default_factory=list)
    events_seen: list[str] = field(default_factory=list)
    events_not_seen: list[str] = field(default_factory=list)
    case_count: int = 0
    argument_count: int = 0
    reply_count: int = 0
    event_count: int = 0
    deviations: list[str] = field(default_factory=list)


def read_schema(path: str) -> QapiSchema:
    """A schema from a file: the list that ``query-qmp-schema`` returns, or the whole reply.

    Raises: ConfigError, OSError.
    """
    with open(path, encoding="utf-8") as file:
        try:
            content = json.load(file)
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from error
    entries = content.get("return") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and "meta-type" in entry for entry in entries
    ):
        raise ConfigError(f"{path}: not a reply of query-qmp-schema")
    return QapiSchema(entries)


def check_dialect(
    dialect: Dialect, schema: QapiSchema | None = None, script: Script | None = None
) -> SchemaReport:
    """Check one dialect.

    Args:
        schema: what to hold it against; by default what comes with the package.
        script: what the simulated machine does differently (tests of the check itself).
    """
    report = SchemaReport(dialect=dialect)
    judge = schema or schema_of(dialect)
    session = _Session(dialect, judge, script or Script(), report)
    _check_names(session.machine, judge, report)
    for name in report.simulated:
        _check_arguments(dialect, name, judge, report)
    session.run(steps_of(dialect))
    _check_coverage(session, judge, report)
    return report


def _check_names(machine: Machine, judge: QapiSchema, report: SchemaReport) -> None:
    for name in sorted(machine.simulated_commands):
        if name in judge.commands:
            report.simulated.append(name)
        else:
            report.deviations.append(f"{name}: no such command")
    report.not_simulated = sorted(judge.commands.keys() - set(report.simulated))
    for name in command_names(report.dialect):
        wanted = judge.commands.get(name, {}).get("allow-oob", False)
        if name in judge.commands and allows_oob(report.dialect, name) != wanted:
            report.deviations.append(f"{name}: out of band allowed or not")


def _check_arguments(dialect: Dialect, name: str, judge: QapiSchema, report: SchemaReport) -> None:
    for case in argument_cases(judge, name):
        report.case_count += 1
        text = ""
        try:
            check_command(dialect, name, case.arguments)
        except CommandError as error:
            text = error.description
        if bool(text) != bool(case.refusal) or not text.startswith(case.refusal):
            told = f"refused: {text}" if text else "taken"
            wanted = f"refusal: {case.refusal}" if case.refusal else "taken"
            report.deviations.append(f"{name}, {case.about}: {told}; by the schema {wanted}")


def _check_coverage(session: _Session, judge: QapiSchema, report: SchemaReport) -> None:
    for name in report.simulated:
        if not session.successes[name] and name not in _ONLY_REFUSED:
            report.deviations.append(f"{name}: never succeeded in the session of this check")
        entry = judge.type_of(judge.commands[name]["arg-type"])
        names = [member["name"] for member in entry["members"]]
        read = session.machine.members_read.get(name, set())
        report.argument_count += len(names)
        report.without_effect += [f"{name}: {each}" for each in names if each not in read]
        known = {
            member["name"]
            for dialect in Dialect
            if name in (schema := schema_of(dialect)).commands
            for member in schema.every_member_of(schema.type_of(schema.commands[name]["arg-type"]))
        }
        report.deviations += [
            f"{name}: looks for an argument '{each}' that no QEMU has"
            for each in sorted(read - known)
        ]
    report.events_seen = sorted(name for name in session.events if name in judge.events)
    report.events_not_seen = sorted(judge.events.keys() - set(report.events_seen))


class _Given(dict[str, Any]):
    """Arguments that remember which of them were looked at."""

    def __init__(self, content: Mapping[str, Any], read: set[str]) -> None:
        super().__init__(content)
        self._read = read

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self._read.add(str(name))
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return super().get(name, default)


class _WatchedMachine(Machine):
    """A machine that tells which arguments its commands look at."""

    members_read: dict[str, set[str]]

    def carry_out(self, monitor: Monitor, name: str, arguments: Mapping[str, Any]) -> Any:
        """Carry out one command."""
        given = _Given(arguments, self.members_read.setdefault(name, set()))
        return super().carry_out(monitor, name, given)


class _Session:
    """One machine being asked; what it says is held against the schema at once."""

    def __init__(
        self, dialect: Dialect, judge: QapiSchema, script: Script, report: SchemaReport
    ) -> None:
        self._dialect, self._judge, self._report = dialect, judge, report
        self._host, self._timebase = MemoryHost(), VirtualTimebase()
        for path in (*_IMAGES, *_SMALL_IMAGES):
            self._host.add_disk(path, (4 if path in _SMALL_IMAGES else 8) * MIB)
        self.machine = _WatchedMachine(
            MachineConfig(
                dialect=dialect,
                no_shutdown=True,
                agent_port_id="agent" if dialect is not Dialect.STORAGE_DAEMON else None,
                name="vm",
                chardevs=(("qmp", "unix:/qmp,server=on"),),
            ),
            script=script,
            timebase=self._timebase,
            host=self._host,
            on_end=lambda _end: None,
            storage=MemoryStorage(self._host.disks),
            load_pbs_library=lambda: InstantLibrary(self._timebase),
        )
        self._host.files["/any"] = b""
        self.machine.members_read = {}
        self.successes: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self._asked = "qmp_capabilities"
        if dialect is not Dialect.STORAGE_DAEMON:
            for index in range(2):
                disk = self._host.disks[f"/d{index}"]
                self.machine.block.add_disk(f"drive-scsi{index}", disk)
            self.machine.block.add_drive({"id": "drive-ide2", "media": "cdrom"})
        self._monitor = self.machine.add_monitor()
        self._monitor.connect(self._receive, lambda: None)

    def run(self, steps: Sequence[Step]) -> None:
        """Carry out all steps."""
        self._ask("qmp_capabilities", {})
        self.machine.start()
        for step in steps:
            if step.command:
                self._ask(step.command, step.arguments, fd_count=step.fd_count)
            elif step.happening:
                self._happen(step.happening)
            self._timebase.advance_to(self._timebase.now_s() + step.wait_s)
            for name in _QUERIES if step.then_query else ():
                if name in schema_of(self._dialect).commands:
                    self._ask(name, {})

    def _ask(self, name: str, arguments: Mapping[str, Any], *, fd_count: int = 0) -> None:
        given = dict(arguments)
        backing = str(given.get("backing", ""))
        if backing.startswith("node of "):
            given["backing"] = self._node(backing.removeprefix("node of ")).name
        self._host.sinks[_FD] = MemorySink()
        self._asked = name
        message = {"execute": name, "arguments": given, "id": name}
        self._monitor.receive(json.dumps(message).encode(), [_FD] * fd_count)

    def _node(self, name: str) -> Node:
        return self.machine.block.look_up(name)

    # -- what comes back -----------------------------------------------------------------------

    def _receive(self, data: bytes) -> None:
        message = json.loads(data)
        if "event" in message:
            self._report.event_count += 1
            self.events[message["event"]] += 1
            self._note(self._event_deviations(message))
        elif "QMP" not in message:
            self._report.reply_count += 1
            self._note(self._reply_deviations(message))

    def _note(self, texts: Iterator[str]) -> None:
        for text in texts:
            if text not in self._report.deviations:
                self._report.deviations.append(text)

    def _event_deviations(self, message: Mapping[str, Any]) -> Iterator[str]:
        name = message["event"]
        if name not in self._judge.events:
            yield f"event {name}: no such event"
            return
        data = message.get("data", {})
        yield from self._judge.deviations(self._judge.events[name]["arg-type"], data, name)

    def _reply_deviations(self, message: Mapping[str, Any]) -> Iterator[str]:
        name = str(message.get("id", self._asked))
        if "error" in message:
            error = message["error"]
            if error.keys() != {"class", "desc"} or error["class"] not in _ERROR_CLASSES:
                yield f"{name}: error {error}"
        elif name in self._judge.commands:
            self.successes[name] += 1
            type_name = self._judge.commands[name]["ret-type"]
            yield from self._judge.deviations(type_name, message["return"], name)

    # -- happenings ----------------------------------------------------------------------------

    def _happen(self, what: str) -> None:
        machine, control = self.machine, self.machine.control
        match what:
            case "guest write" if self._dialect is Dialect.STORAGE_DAEMON:
                self._node("disk0").write(MIB, b"\1" * 512)
            case "guest write":
                machine.requests.submit("drive-scsi0", MIB, b"\1" * 512, lambda _errno: None)
            case "target full" | "disk full":
                node = self._node("plain" if what == "target full" else "drive-scsi0")
                node.disk = CrampedDisk(_present(node), room_bytes=0)
                if node.below is not None:
                    node.below.disk = node.disk
            case "target has room" | "disk has room":
                node = self._node("plain" if what == "target has room" else "drive-scsi0")
                disk = _present(node)
                assert isinstance(disk, CrampedDisk)
                disk.room_bytes = 64 * MIB
            case "guest reset":
                control.guest_resets()
            case "guest suspends":
                control.guest_suspends()
            case "guest panics":
                data = {"action": "pause"}
                control.halt_for(RunState.GUEST_PANICKED, event="GUEST_PANICKED", data=data)
            case "agent dies":
                assert machine.agent is not None
                machine.agent.go_down()
            case _:
                raise ConfigError(f"no such happening: {what}")


def _present(node: Node) -> Disk:
    return node.disk if node.disk is not None else MemoryDisk(b"")


def render_reports(reports: Sequence[SchemaReport]) -> str:
    """The table, what is not simulated, and one line per deviation."""
    rows = [("", *(report.dialect.value for report in reports))]
    figures = {
        "commands simulated": [len(report.simulated) for report in reports],
        "commands not simulated": [len(report.not_simulated) for report in reports],
        "argument cases tried": [report.case_count for report in reports],
        "arguments": [report.argument_count for report in reports],
        "arguments without effect": [len(report.without_effect) for report in reports],
        "replies looked at": [report.reply_count for report in reports],
        "events looked at": [report.event_count for report in reports],
        "kinds of events": [len(report.events_seen) for report in reports],
        "events not simulated": [len(report.events_not_seen) for report in reports],
        "deviations": [len(report.deviations) for report in reports],
    }
    rows += [(label, *map(str, counts)) for label, counts in figures.items()]
    lines = [f"{row[0]:26}" + "".join(f"{cell:>16}" for cell in row[1:]) for row in rows]
    for report in reports:
        for title, names in (
            ("commands not simulated", report.not_simulated),
            ("arguments without effect", report.without_effect),
            ("events not simulated", report.events_not_seen),
        ):
            heading = f"{report.dialect.value}: {len(names)} {title}: "
            text = heading + (", ".join(names) or "none")
            lines += ["", *textwrap.wrap(text, 100, subsequent_indent="  ", break_on_hyphens=False)]
    lines.append("")
    for report in reports:
        lines += [f"{report.dialect.value}: DEVIATION: {text}" for text in report.deviations]
    total = sum(len(report.deviations) for report in reports)
    lines.append("no deviation" if total == 0 else f"{total} deviations")
    return "\n".join(lines) + "\n"
