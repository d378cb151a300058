"""The guest agent of one machine, behind its serial port.

Owns the agent's protocol, what it refuses while frozen, and when it reads: bytes written while no
agent runs, or while the machine stands still, wait in the port and are carried out later, a freeze
included. Frozen file systems outlive the agent's process; only a reset of the guest thaws them.
Source: recorded sessions ``qga-*``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from vzsim.fakeqmp import wire
from vzsim.fakeqmp.frames import command_of
from vzsim.fakeqmp.jobs import Emit
from vzsim.fakeqmp.outside import Timebase, Timer
from vzsim.fakeqmp.replies import RuleBook, bend_outcome, canned_outcome, message_of
from vzsim.fakeqmp.schema import Argument, CommandError, check_arguments
from vzsim.fakeqmp.script import AgentPresence, AgentRules, CommandRule, Moment

_LINE_END = b"\n"
_DELIMITER = b"\xff"
_ALLOWED_WHILE_FROZEN = frozenset(
    (
        "guest-ping",
        "guest-info",
        "guest-sync",
        "guest-sync-delimited",
        "guest-fsfreeze-status",
        "guest-fsfreeze-thaw",
    )
)
_NO_SUCCESS_REPLY = frozenset(
    ("guest-shutdown", "guest-suspend-disk", "guest-suspend-hybrid", "guest-suspend-ram")
)
_UNSUPPORTED = frozenset(("guest-get-devices",))
_NS_PER_S = 1_000_000_000
# What Windows answers to a thaw after its own time limit for a freeze.
_HELD_TOO_LONG = "couldn't hold writes: fsfreeze is limited up to 10 seconds: (error: 80042314)"


@cache
def _arguments(text: str) -> tuple[Argument, ...]:
    found = []
    for word in text.split():
        name, kind = word.split(":")
        found.append(Argument(name=name.rstrip("?"), kind=kind, optional=name.endswith("?")))
    return tuple(found)


_COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "guest-exec": "path:str arg?:list env?:list input-data?:str capture-output?:bool",
        "guest-exec-status": "pid:int",
        "guest-file-close": "handle:int",
        "guest-file-flush": "handle:int",
        "guest-file-open": "path:str mode?:str",
        "guest-file-read": "handle:int count?:int",
        "guest-file-seek": "handle:int offset:int whence:any",
        "guest-file-write": "handle:int buf-b64:str count?:int",
        "guest-fsfreeze-freeze": "",
        "guest-fsfreeze-freeze-list": "mountpoints?:list",
        "guest-fsfreeze-status": "",
        "guest-fsfreeze-thaw": "",
        "guest-fstrim": "minimum?:int",
        "guest-get-cpustats": "",
        "guest-get-devices": "",
        "guest-get-disks": "",
        "guest-get-diskstats": "",
        "guest-get-fsinfo": "",
        "guest-get-host-name": "",
        "guest-get-memory-block-info": "",
        "guest-get-memory-blocks": "",
        "guest-get-osinfo": "",
        "guest-get-time": "",
        "guest-get-timezone": "",
        "guest-get-users": "",
        "guest-get-vcpus": "",
        "guest-info": "",
        "guest-network-get-interfaces": "",
        "guest-ping": "",
        "guest-set-memory-blocks": "mem-blks:list",
        "guest-set-time": "time?:int",
        "guest-set-user-password": "username:str password:str crypted:bool",
        "guest-set-vcpus": "vcpus:list",
        "guest-shutdown": "mode?:str",
        "guest-ssh-add-authorized-keys": "username:str keys:list reset?:bool",
        "guest-ssh-get-authorized-keys": "username:str",
        "guest-ssh-remove-authorized-keys": "username:str keys:list",
        "guest-suspend-disk": "",
        "guest-suspend-hybrid": "",
        "guest-suspend-ram": "",
        "guest-sync": "id:int",
        "guest-sync-delimited": "id:int",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestActions:
    """What an agent makes its guest do."""

    power_off: Callable[[], None]
    reboot: Callable[[], None]
    suspend: Callable[[], None]
    die: Callable[[], None]
    freeze: Callable[[], None] = lambda: None


class Agent:
    """The agent of one machine.

    Args:
        port_id: id of the serial port device; without one no VSERPORT_CHANGE events appear.
        is_guest_running: whether the guest's processors run now.
    """

    def __init__(
        self,
        *,
        rules: AgentRules,
        rule_book: RuleBook,
        port_id: str,
        emit: Emit,
        timebase: Timebase,
        is_guest_running: Callable[[], bool],
        actions: GuestActions,
    ) -> None:
        self.rules = rules
        self._rule_book = rule_book
        self._port_id = port_id
        self._emit = emit
        self._timebase = timebase
        self._is_guest_running = is_guest_running
        self._actions = actions
        self._decoder = wire.Decoder()
        self._unread = bytearray()
        self._requests: deque[wire.Message | wire.ParseFailure] = deque()
        self._undelivered: list[bytes] = []
        self._write: Callable[[bytes], None] | None = None
        self._hang_up: Callable[[], None] | None = None
        self._timer: Timer | None = None
        self._stale_due = False
        self.is_up = False
        self.frozen_count = 0
        self._let_itself_go = False
        self._exec_pid = 100

    @property
    def is_frozen(self) -> bool:
        """Whether file systems of the guest are frozen."""
        return self.frozen_count > 0

    def boot(self) -> None:
        """The guest begins to run: the agent comes up when the rules say."""
        if self.rules.state is AgentPresence.RUNNING and not self.is_up:
            self._timebase.call_later(self.rules.starts_after_s, self.come_up)

    def come_up(self) -> None:
        """The agent's process starts and opens its port."""
        if self.is_up:
            return
        self.is_up = True
        self._say_port(is_open=True)
        self.serve()

    def go_down(self) -> None:
        """The agent's process is gone; what it was doing gets no reply."""
        if not self.is_up:
            return
        self.is_up = False
        self._requests.clear()
        self._decoder.reset()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._say_port(is_open=False)

    def guest_reset(self) -> None:
        """The guest starts anew: nothing is frozen, the agent has to come up again."""
        self.go_down()
        self.frozen_count = 0

    def connect(self, write: Callable[[bytes], None], hang_up: Callable[[], None]) -> None:
        """A client is there; it gets what was written for the one before."""
        self._write, self._hang_up = write, hang_up
        self._stale_due = bool(self.rules.stale_replies)
        for data in self._undelivered:
            write(data)
        self._undelivered.clear()

    def disconnect(self) -> None:
        """The client is gone; its requests are still carried out."""
        self._write = self._hang_up = None

    def receive(self, data: bytes) -> None:
        """Bytes from the client."""
        self._unread.extend(data)
        self.serve()

    def serve(self) -> None:
        """Read and carry out what waits, if there is an agent and its guest runs."""
        while self.is_up and self._is_guest_running() and self._timer is None:
            if self._unread:
                self._requests.extend(self._decoder.feed(bytes(self._unread)))
                self._unread.clear()
            if not self._requests:
                return
            self._carry_out(self._requests.popleft())

    # -- one request ---------------------------------------------------------------------------

    def _carry_out(self, content: wire.Message | wire.ParseFailure) -> None:
        if isinstance(content, wire.ParseFailure):
            self._reply({}, "", CommandError(content.description), None)
            return
        members = content.value if isinstance(content.value, dict) else {}
        try:
            name, arguments = self._check(content.value)
        except CommandError as error:
            self._reply(members, "", error, None)
            return
        rule = self._rule_book.rule_for(name)
        if rule is not None and rule.die is Moment.BEFORE:
            self._actions.die()
            return
        if name == self.rules.dies_at:
            self.go_down()
            return
        delay_s = (rule.delay_s if rule else 0.0) + self._delay_of(name)
        if delay_s > 0:
            self._timer = self._timebase.call_later(
                delay_s, lambda: self._late(members, name, arguments, rule)
            )
        else:
            self._act(members, name, arguments, rule)

    def _late(
        self,
        members: dict[str, Any],
        name: str,
        arguments: Mapping[str, Any],
        rule: CommandRule | None,
    ) -> None:
        self._timer = None
        self._act(members, name, arguments, rule)
        self.serve()

    def _act(
        self,
        members: dict[str, Any],
        name: str,
        arguments: Mapping[str, Any],
        rule: CommandRule | None,
    ) -> None:
        outcome = canned_outcome(rule)
        if outcome is None:
            try:
                outcome = self._obey(name, arguments)
            except CommandError as error:
                outcome = error
        self._reply(members, name, bend_outcome(rule, outcome), rule)
        if name == self.rules.dies_after:
            self.go_down()

    def _check(self, value: Any) -> tuple[str, Mapping[str, Any]]:
        name = command_of(value, oob_enabled=False)
        arguments: Mapping[str, Any] = value.get("arguments", {})
        if name not in _COMMANDS:
            raise CommandError(f"The command {name} has not been found", "CommandNotFound")
        if name in self.rules.disabled or name in _UNSUPPORTED:
            raise CommandError(f"Command {name} has been disabled", "CommandNotFound")
        if self.is_frozen and name not in _ALLOWED_WHILE_FROZEN:
            raise CommandError(
                f"Command {name} has been disabled: the agent is in frozen state",
                "CommandNotFound",
            )
        check_arguments(_arguments(_COMMANDS[name]), arguments)
        return name, arguments

    def _delay_of(self, name: str) -> float:
        if name.startswith("guest-fsfreeze-freeze"):
            return self.rules.freeze_delay_s
        return self.rules.thaw_delay_s if name == "guest-fsfreeze-thaw" else 0.0

    def _reply(
        self, members: dict[str, Any], name: str, outcome: Any, rule: CommandRule | None
    ) -> None:
        if rule is not None and rule.die is Moment.AFTER:
            self._actions.die()
            return
        if rule is not None and rule.close is not None and self._hang_up is not None:
            hang_up = self._hang_up
            self.disconnect()
            hang_up()
            return
        failed = isinstance(outcome, CommandError)
        if (rule is not None and rule.silent) or (name in _NO_SUCCESS_REPLY and not failed):
            return
        message = message_of(outcome)
        if "id" in members:
            message["id"] = members["id"]
        if rule is not None and rule.reply_id is not None:
            message["id"] = rule.reply_id
        if self._stale_due:
            self._stale_due = False
            for stale in self.rules.stale_replies:
                self._send(wire.encode(dict(stale), line_end=_LINE_END))
        prefix = _DELIMITER if name == "guest-sync-delimited" and not failed else b""
        self._send(prefix + wire.encode(message, line_end=_LINE_END))

    def _send(self, data: bytes) -> None:
        if self._write is None:
            self._undelivered.append(data)
        else:
            self._write(data)

    def _say_port(self, *, is_open: bool) -> None:
        if self._port_id:
            self._emit("VSERPORT_CHANGE", {"open": is_open, "id": self._port_id})

    # -- what the commands do ------------------------------------------------------------------

    def _obey(self, name: str, arguments: Mapping[str, Any]) -> Any:
        match name:
            case "guest-sync" | "guest-sync-delimited":
                return arguments["id"]
            case "guest-fsfreeze-status":
                return "frozen" if self.is_frozen else "thawed"
            case "guest-fsfreeze-freeze":
                return self._freeze(self.rules.filesystem_count)
            case "guest-fsfreeze-freeze-list":
                return self._freeze(self._count_mounted(arguments.get("mountpoints")))
            case "guest-fsfreeze-thaw":
                return self._thaw()
            case "guest-shutdown" | "guest-suspend-ram" | "guest-suspend-disk":
                return self._power(name, arguments)
            case "guest-info":
                return {"version": "7.2.22", "supported_commands": self._list_commands()}
            case _:
                return self._look_up(name)

    def _freeze(self, count: int) -> int:
        if self.rules.freeze_error is not None:
            raise CommandError(self.rules.freeze_error)
        self._actions.freeze()
        self.frozen_count = count
        self._let_itself_go = False
        if self.rules.thaws_itself_after_s > 0:
            self._timebase.call_later(self.rules.thaws_itself_after_s, self._thaw_by_itself)
        return count

    def _thaw_by_itself(self) -> None:
        if self.is_frozen:
            self.frozen_count = 0
            self._let_itself_go = True

    def _thaw(self) -> int:
        if self.rules.thaw_error is not None:
            raise CommandError(self.rules.thaw_error)
        if self._let_itself_go:
            self._let_itself_go = False
            raise CommandError(_HELD_TOO_LONG)
        count, self.frozen_count = self.frozen_count, 0
        return count

    def _count_mounted(self, mountpoints: list[Any] | None) -> int:
        mounted = [f"/mnt{index}" for index in range(self.rules.filesystem_count)]
        if mountpoints is None:
            return len(mounted)
        return sum(path in mounted for path in mountpoints)

    def _power(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        mode = arguments.get("mode", "powerdown")
        if name != "guest-shutdown":
            action = self._actions.suspend
        elif mode in ("powerdown", "halt"):
            action = self._actions.power_off
        elif mode == "reboot":
            action = self._actions.reboot
        else:
            raise CommandError("Parameter 'mode' expects 'halt', 'powerdown', or 'reboot'")
        self._timebase.call_later(0.0, action)
        return {}

    def _list_commands(self) -> list[dict[str, Any]]:
        blocked = {*self.rules.disabled, *_UNSUPPORTED}
        return [
            {
                "enabled": name not in blocked
                and (not self.is_frozen or name in _ALLOWED_WHILE_FROZEN),
                "name": name,
                "success-response": name not in _NO_SUCCESS_REPLY,
            }
            for name in _COMMANDS
        ]

    def _look_up(self, name: str) -> Any:
        match name:
            case "guest-ping" | "guest-set-time" | "guest-set-user-password":
                return {}
            case "guest-get-time":
                return int(self._timebase.now_s() * _NS_PER_S)
            case "guest-get-timezone":
                return {"zone": "UTC", "offset": 0}
            case "guest-get-host-name":
                return {"host-name": "(none)"}
            case "guest-get-osinfo":
                return {
                    "kernel-release": "6.1.0",
                    "kernel-version": "#1 SMP",
                    "machine": "x86_64",
                }
            case "guest-get-vcpus":
                return [{"online": True, "can-offline": False, "logical-id": 0}]
            case "guest-get-fsinfo":
                return [self._describe_filesystem(at) for at in range(self.rules.filesystem_count)]
            case "guest-exec":
                self._exec_pid += 1
                return {"pid": self._exec_pid}
            case _:
                raise CommandError("this feature or command is not currently supported")

    def _describe_filesystem(self, index: int) -> dict[str, Any]:
        letter = chr(ord("a") + index)
        controller = {"bus": 0, "slot": 2, "domain": 0, "function": 0}
        return {
            "name": f"sd{letter}",
            "total-bytes": 6160384,
            "mountpoint": f"/mnt{index}",
            "disk": [
                {
                    "bus-type": "scsi",
                    "bus": 0,
                    "unit": index,
                    "pci-controller": controller,
                    "dev": f"/dev/sd{letter}",
                    "target": 0,
                }
            ],
            "used-bytes": 14336,
            "type": "ext4",
        }
