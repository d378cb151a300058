"""One QMP monitor (greeting, negotiation, descriptors) and the dispatcher of all monitors.

Owns the protocol texts. QEMU carries out one command at a time for all its monitors, so one
`Dispatcher` serves them all: while a command waits, everything waits.
Source: recorded sessions ``pve-hello``, ``pve-protocol``, ``pve-fd-errors``, ``stock-hello``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vzdump_qemu.errors import ConfigError
from vzsim.fakeqmp import wire
from vzsim.fakeqmp.frames import command_of
from vzsim.fakeqmp.outside import Host
from vzsim.fakeqmp.replies import (
    Pending,
    RuleBook,
    bend_outcome,
    canned_outcome,
    message_of,
)
from vzsim.fakeqmp.schema import CommandError, Dialect, allows_oob, check_command
from vzsim.fakeqmp.script import CommandRule, Moment

if TYPE_CHECKING:
    from vzsim.fakeqmp.machine import Machine

_LINE_END = b"\r\n"


class FdTable:
    """Descriptors of one monitor: those that came with a message, and the named ones."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._arrived: list[int] = []
        self._named: dict[str, int] = {}

    def arrive(self, fds: Sequence[int]) -> None:
        """Descriptors that came with the message about to be carried out."""
        if self._arrived:
            self._close_arrived()
        if fds:
            self._arrived = list(fds)

    def take_arrived(self) -> int:
        """The first descriptor of the message; the others are closed.

        Raises: CommandError if there is none.
        """
        if not self._arrived:
            raise CommandError("No file descriptor supplied via SCM_RIGHTS")
        fd = self._arrived.pop(0)
        self._close_arrived()
        return fd

    def name(self, name: str, fd: int) -> None:
        """Keep a descriptor under a name; one of the same name is closed."""
        if name in self._named:
            self._host.close_fd(self._named.pop(name))
        self._named[name] = fd

    def take_named(self, name: str) -> int | None:
        """Hand over the descriptor of that name, if there is one."""
        return self._named.pop(name, None)

    def close(self) -> None:
        """Close all."""
        self._close_arrived()
        for fd in self._named.values():
            self._host.close_fd(fd)
        self._named.clear()

    def _close_arrived(self) -> None:
        if self._arrived:
            for fd in self._arrived:
                self._host.close_fd(fd)
            self._arrived = []


class Request(NamedTuple):
    """One message of a client on its way to be carried out."""

    monitor: Monitor
    connection_index: int
    content: wire.Message | wire.ParseFailure
    fds: tuple[int, ...] = ()


class Monitor:
    """One monitor; a client at a time.

    Descriptor names belong to the monitor and outlive its clients.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._decoder = wire.Decoder()
        self._deliver: Callable[[dict[str, Any]], None] | None = None
        self._hang_up: Callable[[], None] | None = None
        self._carried_fds: list[int] = []
        self.connection_index = 0
        self.negotiated = False
        self.oob_enabled = False
        self.fds = FdTable(machine.host)

    def connect(self, write: Callable[[bytes], None], hang_up: Callable[[], None]) -> None:
        """A client is there: greet it.

        Args:
            write: takes bytes for the client.
            hang_up: closes the connection from our side.
        """
        self.connect_in_memory(
            lambda message: write(wire.encode(message, line_end=_LINE_END)), hang_up
        )

    def connect_in_memory(
        self, deliver: Callable[[dict[str, Any]], None], hang_up: Callable[[], None]
    ) -> None:
        """As `connect`, for a client in this process: it is given messages, and `take`s them back.

        Args:
            deliver: takes a message; what is in it stays ours.
        """
        self._deliver, self._hang_up = deliver, hang_up
        self.connection_index += 1
        self.negotiated = self.oob_enabled = False
        self._decoder.reset()
        capabilities = [] if self._machine.config.dialect is Dialect.PVE else ["oob"]
        self.send({"QMP": {"version": self._machine.config.version, "capabilities": capabilities}})

    def receive(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Bytes, and descriptors that came along with them."""
        self._carried_fds.extend(fds)
        found = self._decoder.feed(data)
        for index, content in enumerate(found):
            is_last = index == len(found) - 1
            carried = tuple(self._carried_fds) if is_last else ()
            if is_last:
                self._carried_fds.clear()
            self._machine.dispatcher.add(Request(self, self.connection_index, content, carried))

    def take(self, message: Any, fds: Sequence[int] = ()) -> None:
        """One message of a client in this process, with its descriptors; it becomes ours."""
        self._machine.dispatcher.add(
            Request(self, self.connection_index, wire.Message(message), tuple(fds))
        )

    def disconnect(self) -> None:
        """The client is gone; the work it asked for goes on."""
        self._deliver = self._hang_up = None
        self.negotiated = False

    def hang_up(self) -> None:
        """Close the connection from our side."""
        hang_up = self._hang_up
        self.disconnect()
        if hang_up is not None:
            hang_up()

    def send(self, message: dict[str, Any]) -> None:
        """Send to the client, if one is there."""
        if self._deliver is not None:
            self._deliver(message)


class Dispatcher:
    """Carries out the requests of all monitors, one at a time."""

    def __init__(self, machine: Machine, rule_book: RuleBook) -> None:
        self._machine = machine
        self._rule_book = rule_book
        self._queue: deque[Request] = deque()
        self._busy = False

    def add(self, request: Request) -> None:
        """Queue a request; it is carried out as soon as the ones before it are done."""
        self._queue.append(request)
        self._serve()

    def _serve(self) -> None:
        while self._queue and not self._busy and not self._machine.is_dead:
            self._busy = True
            self._carry_out(self._queue.popleft())

    def _carry_out(self, request: Request) -> None:
        content, monitor = request.content, request.monitor
        monitor.fds.arrive(request.fds)
        if isinstance(content, wire.ParseFailure):
            self._finish(request, {}, None, CommandError(content.description))
            return
        members = content.value if isinstance(content.value, dict) else {}
        arguments = members.get("arguments", {})
        try:
            name = command_of(content.value, oob_enabled=monitor.oob_enabled)
            if monitor.negotiated is (name == "qmp_capabilities"):
                raise _negotiation_error(is_complete=monitor.negotiated)
            check_command(self._machine.config.dialect, name, arguments)
            if "exec-oob" in members and not allows_oob(self._machine.config.dialect, name):
                raise CommandError(f"The command {name} does not support OOB")
        except CommandError as error:
            self._finish(request, members, None, error)
            return
        self._obey(request, members, name, arguments)

    def _obey(
        self, request: Request, members: dict[str, Any], name: str, arguments: Mapping[str, Any]
    ) -> None:
        rule = self._rule_book.rule_for(name)
        if rule is not None and rule.die is Moment.BEFORE:
            self._machine.die("SIGKILL")
            return
        if rule is not None and rule.close is Moment.BEFORE:
            request.monitor.hang_up()
            self._next()
            return
        outcome = None if rule is None else canned_outcome(rule)
        if outcome is None:
            try:
                outcome = self._machine.carry_out(request.monitor, name, arguments)
            except CommandError as error:
                outcome = error
            except (ConfigError, OSError) as error:
                outcome = CommandError(str(error))
        if isinstance(outcome, Pending):
            outcome.then(lambda value: self._finish(request, members, rule, value))
        else:
            self._finish(request, members, rule, outcome)

    def _finish(
        self, request: Request, members: dict[str, Any], rule: CommandRule | None, outcome: Any
    ) -> None:
        if self._machine.is_dead:
            return
        if rule is not None and rule.delay_s > 0:
            self._machine.timebase.call_later(
                rule.delay_s, lambda: self._reply(request, members, rule, outcome)
            )
            return
        self._reply(request, members, rule, outcome)

    def _reply(
        self, request: Request, members: dict[str, Any], rule: CommandRule | None, outcome: Any
    ) -> None:
        monitor = request.monitor
        if self._machine.is_dead:
            return
        if rule is not None and rule.die is Moment.AFTER:
            self._machine.die("SIGKILL")
            return
        message = message_of(outcome if rule is None else bend_outcome(rule, outcome))
        if "id" in members:
            message["id"] = members["id"]
        if rule is not None and rule.reply_id is not None:
            message["id"] = rule.reply_id
        # A reply for a client that has left is thrown away, not given to the next one.
        if request.connection_index == monitor.connection_index:
            if rule is not None and rule.close is Moment.AFTER:
                monitor.hang_up()
            elif rule is None or not rule.silent:
                monitor.send(message)
        self._next()

    def _next(self) -> None:
        self._busy = False
        self._machine.command_done()
        if self._queue:
            self._serve()


def _negotiation_error(*, is_complete: bool) -> CommandError:
    if is_complete:
        text = "Capabilities negotiation is already complete, command ignored"
    else:
        text = "Expecting capabilities negotiation with 'qmp_capabilities'"
    return CommandError(text, "CommandNotFound")
