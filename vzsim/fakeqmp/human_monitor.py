"""The few commands of the human monitor that tools send through ``human-monitor-command``.

Replies are texts with CR LF, errors included. Source: recorded sessions ``pve-hmp``,
``pve-fleecing-attach``, ``pve-blocked-operations``.
"""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vzdump_qemu.units import GIB, KIB, MIB
from vzsim.command_line import parse_options
from vzsim.fakeqmp.replies import Pending
from vzsim.fakeqmp.schema import CommandError

if TYPE_CHECKING:
    from vzsim.fakeqmp.machine import Machine
    from vzsim.fakeqmp.monitor import Monitor

_HELP_BACKUP = "backup backupfile [speed [devlist]] -- create a VM backup (VMA format).\r\n"
_SCALE = {"": 1, "k": KIB, "m": MIB, "g": GIB}


class HumanMonitor:
    """Human monitor of one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def carry_out(self, monitor: Monitor, line: str) -> str | Pending:
        """Carry out one line; the text, or a `Pending` of it."""
        try:
            words = shlex.split(line)
        except ValueError:
            return "unterminated string literal\r\n"
        try:
            match words:
                case ["info", "backup"]:
                    return self._info_backup()
                case ["help", "backup"]:
                    return _HELP_BACKUP
                case ["backup", *rest]:
                    return self._backup(monitor, rest)
                case ["backup_cancel"]:
                    return self._backup_cancel()
                case ["drive_add", _, options]:
                    self._machine.block.add_drive(parse_options(options))
                    return "OK\r\n"
                case ["drive_del", device_id]:
                    self._machine.jobs.refuse_if_busy(device_id)
                    self._machine.block.remove_drive(device_id)
                    return ""
                case ["qemu-io", "-d", device_id, command] | ["qemu-io", device_id, command]:
                    return self._qemu_io(device_id, command)
                case _:
                    return f"unknown command: '{words[0] if words else ''}'\r\n"
        except CommandError as error:
            return f"{error.description}\r\n"

    def _backup(self, monitor: Monitor, words: list[str]) -> str:
        if len(words) > 1 and not words[1].isdigit():
            return 'invalid size\r\nTry "help backup" for more information\r\n'
        arguments: dict[str, Any] = {"backup-file": words[0]}
        if len(words) > 1:
            arguments["speed"] = int(words[1])
        if len(words) > 2:
            arguments["devlist"] = words[2]
        self._machine.backup.start(monitor, arguments)
        return ""

    def _backup_cancel(self) -> str | Pending:
        outcome = self._machine.backup.cancel()
        if not isinstance(outcome, Pending):
            return ""
        pending = Pending()
        outcome.then(lambda _value: pending.resolve(""))
        return pending

    def _info_backup(self) -> str:
        state = self._machine.backup.query()
        if "status" not in state:
            return ""
        status = state["status"]
        if "errmsg" in state:
            status += f" - {state['errmsg']}"
        total = state["total"]

        def amount(value: int) -> str:
            return f"{value} ({value * 100 // total if total else 100}%)"

        lines = [f"Backup status: {status}", f"Start time: {_ctime(state['start-time'])}"]
        if "end-time" in state:
            lines.append(f"End time: {_ctime(state['end-time'])}")
        lines += [
            f"Backup file: {state.get('backup-file', '')}",
            f"Backup uuid: {state['uuid']}",
            f"Total size: {total}",
            f"Transferred bytes: {amount(state['transferred'])}",
            f"Zero bytes: {amount(state['zero-bytes'])}",
            f"Reused bytes: {amount(state['reused'])}",
        ]
        return "".join(f"{line}\r\n" for line in lines)

    def _qemu_io(self, device_id: str, command: str) -> str | Pending:
        """``write -P PATTERN OFFSET LENGTH`` or ``write -z``, the way tests make a guest write."""
        found = re.fullmatch(
            r"write (?:-P (\S+)|-z) (\d+)([kKMG]?) (\d+)([kKMG]?)", command.strip('"')
        )
        if found is None:
            return f"command not simulated: {command}\r\n"
        pattern, offset, offset_unit, length, length_unit = found.groups()
        data = bytes([int(pattern or "0", 0)]) * (int(length) * _SCALE[length_unit.lower()])
        node = self._machine.block.node(device_id)
        device = next((r for r in node.roots if r.startswith("device ")), "") if node else ""
        if device:
            raise CommandError(
                f"Permission conflict on node '{device_id}': permissions 'write' are both required"
                f" by an unnamed block device (uses node '{device_id}' as 'root' child) and"
                f" unshared by block device '{device.removeprefix('device ')}'"
                f" (uses node '{device_id}' as 'root' child)."
            )
        pending = Pending()
        self._machine.guest_write(
            device_id,
            int(offset) * _SCALE[offset_unit.lower()],
            data,
            lambda _errno_code: pending.resolve(""),
        )
        return pending


def _ctime(seconds: int) -> str:
    when = datetime.fromtimestamp(seconds, UTC)
    return f"{when:%a %b} {when.day:2} {when:%H:%M:%S %Y}"
