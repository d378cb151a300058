"""Telling how a job ended: one message, entries of the journal, figures.

Owns who is told over which way, that everybody is told at once and in bounded time, and that a
failure of it is a line of the log and nothing more. What is told comes from `plan`, what sends it
from `outlets`. Source: host behaviour, sections 1.6 (7), 1.12 and 1.14.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from vzdump_qemu import events
from vzdump_qemu.cli.job_log import JobLogBook
from vzdump_qemu.cli.log_line import Level, LogLine
from vzdump_qemu.cli.tell_options import TellOptions
from vzdump_qemu.errors import INTERRUPTED_TEXT, BackupError
from vzdump_qemu.events import Emit, Event
from vzdump_qemu.formats.journal_entry import SOCKET_PATH
from vzdump_qemu.formats.mail_addresses import parse_sender_address, parse_user_addresses
from vzdump_qemu.node.layout import NodeLayout
from vzdump_qemu.node.local_node import LocalNode
from vzdump_qemu.node.socket_node import SocketNode
from vzdump_qemu.outlet_ports import JournalOutlet, Message, MessageOutlet
from vzdump_qemu.outlets.pve import PlatformOutlet
from vzdump_qemu.outlets.systemd_journal import SystemdJournal
from vzdump_qemu.plan.addressing import find_recipients
from vzdump_qemu.plan.batch_record import JobRecord
from vzdump_qemu.plan.batch_recorder import JobRecorder
from vzdump_qemu.plan.job_message import make_message, make_outcome
from vzdump_qemu.plan.journal_entries import Priority, job_entry, line_entry, run_entry
from vzdump_qemu.plan.measurements import LASTING_NAMES, measure_job
from vzdump_qemu.plan.notification import (
    SENDER_NAME,
    Delivery,
    choose_delivery,
    notification_fields,
)
from vzdump_qemu.stores.system import run_blocking

_TIMEOUT_S = 120.0
# Whoever interrupted the job waits for its end.
_HURRIED_TIMEOUT_S = 20.0
_NAME_TIMEOUT_S = 5.0
_STDERR_FD = 2
_PRIORITIES = {Level.WARN: Priority.WARNING, Level.ERROR: Priority.ERROR}
# What vzdump hands to syslog with all lines.
_SYSLOG_EVENTS = (
    events.JobStarted,
    events.JobEnded,
    events.GlobalLockAwaited,
    events.GlobalLockTaken,
    events.NotificationFailed,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TellPlace:
    """Where the job runs, as far as it matters for telling.

    Attributes:
        layout: of the node; None for a VM known by its sockets.
        platform: the platform's notification system, where there is one.
    """

    node_name: str
    layout: NodeLayout | None
    platform: MessageOutlet | None


def find_place(node: LocalNode | SocketNode) -> TellPlace:
    """What a node has for telling."""
    if not isinstance(node, LocalNode):
        return TellPlace(node_name=node.name, layout=None, platform=None)
    platform = PlatformOutlet(node.bridge) if node.bridge is not None else None
    return TellPlace(node_name=node.name, layout=node.layout, platform=platform)


@dataclass(frozen=True, slots=True, kw_only=True)
class TellPlan:
    """Everything that telling needs and that is known only once a job is understood.

    Attributes:
        command_line: as the log tells it.
        emit: takes what went wrong with telling.
    """

    options: TellOptions
    place: TellPlace
    command_line: str
    emit: Emit


def open_teller(root: str, *, wall_s: Callable[[], float], shows_lines: bool) -> JobTeller:
    """One that knows nobody to tell yet but the journal below that root.

    Args:
        shows_lines: standard error gets the log; where that is the journal, it has all lines.
    """
    journal = SystemdJournal(f"{root.rstrip('/')}{SOCKET_PATH}")
    has_lines = shows_lines and is_journal_stream(_STDERR_FD, os.environ)
    return JobTeller(journal, wall_s=wall_s, journal_has_lines=has_lines)


def is_journal_stream(fd: int, environment: Mapping[str, str]) -> bool:
    """Whether what is written there goes to the journal, as systemd tells what it starts."""
    try:
        facts = os.fstat(fd)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{facts.st_dev}:{facts.st_ino}"


class JobTeller:
    """`JobNotifier` of one job; also a `Screen`, by which it hears what the job says.

    Args:
        journal: of the host.
        journal_has_lines: it gets the lines of the log in another way.
        wall_s: seconds since the epoch.
        timeout_s: limit of each way on which somebody is told.
    """

    def __init__(
        self,
        journal: JournalOutlet,
        *,
        wall_s: Callable[[], float],
        journal_has_lines: bool = False,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self._journal = journal
        self._wall_s = wall_s
        self._journal_has_lines = journal_has_lines
        self._timeout_s = timeout_s
        self._book = JobLogBook()
        self._recorder = JobRecorder(host_name="")
        self._plan: TellPlan | None = None
        self._has_told = False

    @property
    def record(self) -> JobRecord:
        """The job as far as it was heard."""
        return self._recorder.record()

    def add_hint(self, hint: str) -> None:
        """What to do about the job's own error, which no event carries."""
        self._recorder.add_hint(hint)

    @property
    def has_told(self) -> bool:
        """Whether the job was told to have ended."""
        return self._has_told

    def begin(self, plan: TellPlan, vmids: Iterable[int]) -> None:
        """From now on somebody is told, for these VMs; without it nobody ever is."""
        self._plan = plan
        self._recorder.learn(host_name=plan.place.node_name)
        self._recorder.expect(vmids)

    def show(self, event: Event, lines: tuple[LogLine, ...], vmid: int | None = None) -> None:
        """Take one event: for the message, and for the journal."""
        self._recorder.hear(event, vmid=vmid, wall_s=self._wall_s())
        self._book.take(event, vmid=vmid)
        if not self._journal_has_lines:
            for line in _syslog_lines(event, lines):
                priority = _PRIORITIES.get(line.level, Priority.INFO)
                self._journal.write(line_entry(line.text, priority, vmid=vmid))
        if isinstance(event, events.RunClosed):
            run = self._recorder.record().run_of(event.vmid)
            if run is not None:
                job_id = self._plan.options.job_id if self._plan else ""
                self._journal.write(run_entry(run, job_id=job_id))

    def close(self, last_line: str) -> None:
        """Everything was told before the verdict."""

    async def job_ended(self) -> None:
        """See `JobNotifier.job_ended`."""
        self._has_told = True
        plan, record = self._plan, self._recorder.record()
        if plan is None:
            return
        message = await self._compose(plan, record)
        options = plan.options
        self._journal.write(job_entry(record, status=message.subject, job_id=options.job_id))
        acts: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            (outlet.name, partial(outlet.send, message)) for outlet in self._outlets(plan, message)
        ]
        if options.measurements is not None:
            figures = measure_job(record, job_id=options.job_id)
            write = partial(options.measurements.write, figures, lasting=LASTING_NAMES)
            acts.append(("metrics", write))
        limit_s = self._timeout_s
        if record.error == INTERRUPTED_TEXT:
            limit_s = min(limit_s, _HURRIED_TIMEOUT_S)
        await asyncio.gather(*(_carry_out(name, act, plan.emit, limit_s) for name, act in acts))

    async def _compose(self, plan: TellPlan, record: JobRecord) -> Message:
        place = plan.place
        outcome = make_outcome(
            record,
            await run_blocking(lambda: self._book.read(record)),
            host_name=await _find_host_name(place),
            command_line=plan.command_line,
        )
        fields = notification_fields(node_name=place.node_name, job_id=plan.options.job_id)
        return make_message(outcome, fields)

    def _outlets(self, plan: TellPlan, message: Message) -> tuple[MessageOutlet, ...]:
        """All ways on which this message is to leave."""
        options, platform = plan.options, plan.place.platform
        delivery = choose_delivery(
            options.mode,
            options.policy,
            has_recipients=bool(options.recipients),
            failed=message.failed,
        )
        match delivery:
            case Delivery.MAIL:
                mail = self._make_mail(plan)
                return options.targets if mail is None else (mail, *options.targets)
            case Delivery.NOTIFICATION_SYSTEM if platform is not None:
                return (platform, *options.targets)
            case Delivery.NOTIFICATION_SYSTEM | Delivery.NOBODY:
                return options.targets

    def _make_mail(self, plan: TellPlan) -> MessageOutlet | None:
        layout = plan.place.layout
        users = parse_user_addresses(_read_cluster_file(layout, "user.cfg"))
        found = find_recipients(plan.options.recipients, users)
        for word in found.unknown:
            text = f"'{word}' is neither a mail address nor a user who has one"
            plan.emit(events.NotificationFailed(name="mail", text=text, hint=""))
        if not found.addresses:
            return None
        # Loaded late: most jobs send no mail, and none before its end.
        from vzdump_qemu.outlets.mail import SENDER_DEFAULT, SendmailOutlet

        sender = parse_sender_address(_read_cluster_file(layout, "datacenter.cfg"))
        return SendmailOutlet(
            found.addresses,
            sender_name=SENDER_NAME,
            sender=sender or SENDER_DEFAULT,
            wall_s=self._wall_s(),
        )


def _syslog_lines(event: Event, lines: tuple[LogLine, ...]) -> tuple[LogLine, ...]:
    """Those that syslog gets as well."""
    match event:
        case events.RunStarted() | events.RunSucceeded():
            return lines[:1]
        case events.RunFailed():
            return tuple(line for line in lines if line.level is Level.ERROR)
        case _ if isinstance(event, _SYSLOG_EVENTS):
            return lines
    return tuple(line for line in lines if line.level is Level.WARN)


def _read_cluster_file(layout: NodeLayout | None, name: str) -> bytes:
    """Empty where there is none, and for a VM that is no node's."""
    if layout is None:
        return b""
    try:
        with open(f"{layout.pve_directory}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""


async def _find_host_name(place: TellPlace) -> str:
    """The host's name with its domain; the node's own name where that is another host's."""
    try:
        async with asyncio.timeout(_NAME_TIMEOUT_S):
            full_name = await run_blocking(socket.getfqdn)
    except (TimeoutError, OSError, UnicodeError):
        return place.node_name
    is_ours = place.layout is None or full_name.partition(".")[0] == place.node_name
    return full_name if is_ours else place.node_name


async def _carry_out(
    name: str, act: Callable[[], Awaitable[None]], emit: Emit, limit_s: float
) -> None:
    try:
        async with asyncio.timeout(limit_s):
            await act()
    except TimeoutError:
        emit(events.NotificationFailed(name=name, text="got timeout", hint=""))
    except BackupError as error:
        emit(events.NotificationFailed(name=name, text=str(error), hint=error.hint))
