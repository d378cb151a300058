"""The commands of one machine: a table from name to what it does.

Arguments have been checked (`schema`); backups live in `backup_commands`, run states in
`run_state`, the human monitor in `human_monitor`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from vzdump_qemu.units import SECTOR_BYTES, round_up
from vzsim.fakeqmp.bitmaps import BITMAP_ACTIONS, BitmapCommands
from vzsim.fakeqmp.human_monitor import HumanMonitor
from vzsim.fakeqmp.replies import Pending
from vzsim.fakeqmp.schema import CommandError, Dialect, command_names, not_found, schema_of
from vzsim.fakeqmp.transactions import Transactions

if TYPE_CHECKING:
    from vzsim.fakeqmp.machine import Machine
    from vzsim.fakeqmp.monitor import Monitor

# They check what a job forbids, then say that they are not simulated.
_ALWAYS_REFUSED = frozenset(("blockdev-snapshot-sync", "block-stream"))
_OF_DEVICES = frozenset(("qom-get", "qom-set"))

_Handler = Callable[["Monitor", Mapping[str, Any]], Any]


def _empty(act: Callable[[Mapping[str, Any]], object]) -> _Handler:
    """A command whose reply is an empty object."""

    def handle(_monitor: Monitor, arguments: Mapping[str, Any]) -> dict[str, Any]:
        act(arguments)
        return {}

    return handle


class Commands:
    """Carries out the commands of one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._human = HumanMonitor(machine)
        self._table: dict[str, _Handler] = {
            **self._query_table(),
            **self._control_table(),
            **self._block_table(),
            **self._job_table(),
            **self._pull_table(),
            **self._backup_table(),
            "qmp_capabilities": self._negotiate,
            "getfd": self._getfd,
            "closefd": self._closefd,
            "add-fd": self._add_fd,
            "remove-fd": self._remove_fd,
            "human-monitor-command": lambda monitor, given: self._human.carry_out(
                monitor, given["command-line"]
            ),
        }

    @property
    def simulated(self) -> frozenset[str]:
        """Names of the commands that this machine carries out."""
        has = command_names(self._machine.config.dialect)
        simulated = frozenset(name for name in has if name in self._table) - _ALWAYS_REFUSED
        if self._machine.config.dialect is Dialect.STORAGE_DAEMON:
            simulated -= _OF_DEVICES
        return simulated

    def carry_out(self, monitor: Monitor, name: str, arguments: Mapping[str, Any]) -> Any:
        """Carry out one command.

        Raises: CommandError; also for a command that exists and is not simulated.
        """
        handler = self._table.get(name)
        if handler is None:
            raise CommandError(f"The command {name} is not simulated")
        return handler(monitor, arguments)

    def _query_table(self) -> dict[str, _Handler]:
        machine = self._machine
        dialect = machine.config.dialect
        return {
            "query-version": lambda _m, _a: machine.config.version,
            "query-status": lambda _m, _a: self._status(),
            "query-uuid": lambda _m, _a: {"UUID": str(UUID(int=0))},
            "query-qmp-schema": lambda _m, _a: schema_of(dialect).entries,
            "query-name": lambda _m, _a: (
                {"name": machine.config.name} if machine.config.name else {}
            ),
            "query-commands": lambda _m, _a: [{"name": name} for name in command_names(dialect)],
            "query-block": lambda _m, _a: machine.block.describe_backends(),
            "query-named-block-nodes": lambda _m, given: machine.block.describe_nodes(
                flat=given.get("flat", False)
            ),
            "query-iothreads": lambda _m, _a: [],
            "query-jobs": lambda _m, _a: machine.jobs.describe(),
            "query-block-jobs": lambda _m, _a: machine.jobs.describe_block_jobs(),
            "query-block-exports": lambda _m, _a: machine.exports.describe(),
            "query-migrate": lambda _m, _a: machine.migration.query(),
            "query-fdsets": lambda _m, _a: machine.fd_sets.describe(),
            "query-chardev": lambda _m, _a: self._chardevs(),
            "query-current-machine": lambda _m, _a: {"wakeup-suspend-support": True},
        }

    def _control_table(self) -> dict[str, _Handler]:
        machine, control = self._machine, self._machine.control
        return {
            "cont": lambda _m, _a: control.cont(),
            "stop": lambda _m, _a: control.stop(),
            "system_reset": lambda _m, _a: control.reset(),
            "system_wakeup": lambda _m, _a: control.wake_up(),
            "system_powerdown": lambda _m, _a: self._power_down(),
            "set-action": lambda _m, given: control.set_action(
                reboot=given.get("reboot"), shutdown=given.get("shutdown")
            ),
            "quit": lambda _m, _a: self._quit(machine),
            "watchdog-set-action": lambda _m, _a: {},
            "migrate": _empty(self._machine.migration.start),
            "migrate_cancel": _empty(lambda _given: self._machine.migration.cancel()),
            "migrate-set-capabilities": _empty(self._machine.migration.set_capabilities),
            "migrate-pause": lambda _m, _a: self._refuse(
                "migrate-pause is currently only supported during postcopy-active state"
            ),
        }

    def _block_table(self) -> dict[str, _Handler]:
        block = self._machine.block
        return {
            "blockdev-add": _empty(self._add_node),
            "blockdev-del": _empty(self._remove_node),
            "blockdev-reopen": _empty(self._reopen),
            "object-add": _empty(block.objects.add),
            "object-del": _empty(block.objects.remove),
            "block_resize": _empty(self._resize),
            "eject": _empty(self._eject),
            "blockdev-snapshot-sync": _empty(lambda given: self._refused(given, drains=True)),
            "block-stream": _empty(lambda given: self._refused(given, drains=False)),
        }

    def _job_table(self) -> dict[str, _Handler]:
        jobs = self._machine.jobs
        return {
            "block-job-set-speed": _empty(
                lambda given: jobs.set_speed(given["device"], given["speed"])
            ),
            "block-job-cancel": _empty(
                lambda given: jobs.cancel(given["device"], force=given.get("force", False))
            ),
            "block-job-pause": _empty(lambda given: jobs.hold(given["device"], held=True)),
            "block-job-resume": _empty(lambda given: jobs.hold(given["device"], held=False)),
            "block-job-complete": _empty(lambda given: jobs.complete(given["device"])),
            "block-job-finalize": _empty(lambda given: jobs.finalize(given["id"], generic=False)),
            "block-job-dismiss": _empty(lambda given: jobs.dismiss(given["id"], generic=False)),
            "job-pause": _empty(lambda given: jobs.hold(given["id"], held=True, generic=True)),
            "job-resume": _empty(lambda given: jobs.hold(given["id"], held=False, generic=True)),
            "job-cancel": _empty(lambda given: jobs.cancel_generic(given["id"])),
            "job-complete": _empty(lambda given: jobs.complete(given["id"], generic=True)),
            "job-finalize": _empty(lambda given: jobs.finalize(given["id"])),
            "job-dismiss": _empty(lambda given: jobs.dismiss(given["id"])),
        }

    def _pull_table(self) -> dict[str, _Handler]:
        machine = self._machine
        block, exports = machine.block, machine.exports
        bitmaps = BitmapCommands(block.look_up)
        transactions = Transactions(machine.jobs, machine.block_jobs, bitmaps)

        def on_bitmap(name: str) -> _Handler:
            return _empty(lambda given: bitmaps.act(name, given))

        return {
            "blockdev-backup": _empty(machine.block_jobs.backup),
            "drive-mirror": _empty(machine.block_jobs.mirror),
            "transaction": _empty(transactions.carry_out),
            **{name: on_bitmap(name) for name in BITMAP_ACTIONS},
            "x-debug-block-dirty-bitmap-sha256": lambda _m, given: bitmaps.digest(given),
            "nbd-server-start": _empty(exports.start_server),
            "nbd-server-stop": _empty(lambda _given: exports.stop_server()),
            "nbd-server-add": _empty(exports.add_by_device),
            "nbd-server-remove": _empty(exports.delete_by_name),
            "block-export-add": _empty(exports.add),
            "block-export-del": _empty(exports.delete),
            "qom-get": lambda _m, given: block.device_drive(given["path"], given["property"]),
            "qom-set": _empty(
                lambda given: block.set_device_drive(
                    given["path"], given["property"], given["value"]
                )
            ),
        }

    def _backup_table(self) -> dict[str, _Handler]:
        if self._machine.config.dialect is not Dialect.PVE:
            return {}
        backup = self._machine.backup
        return {
            "backup": backup.start,
            "backup-cancel": lambda _m, _a: backup.cancel(),
            "query-backup": lambda _m, _a: backup.query(),
            "query-pbs-bitmap-info": lambda _m, _a: backup.query_bitmaps(),
            "query-proxmox-support": lambda _m, _a: backup.query_support(),
            "backup-access-setup": lambda _m, given: backup.access_setup(given),
            "backup-access-teardown": lambda _m, given: backup.access_remove(given),
        }

    @staticmethod
    def _refuse(text: str) -> dict[str, Any]:
        raise CommandError(text)

    def _negotiate(self, monitor: Monitor, arguments: Mapping[str, Any]) -> dict[str, Any]:
        for wanted in arguments.get("enable", []):
            if wanted != "oob":
                raise CommandError(f"Parameter 'enable' does not accept value '{wanted}'")
            if self._machine.config.dialect is Dialect.PVE:
                raise CommandError("Capability oob not available")
            monitor.oob_enabled = True
        monitor.negotiated = True
        return {}

    def _status(self) -> dict[str, Any]:
        control = self._machine.control
        status = {"status": control.state.value, "running": control.is_running}
        if self._machine.config.dialect is Dialect.UPSTREAM:
            status["singlestep"] = False
        return status

    def _chardevs(self) -> list[dict[str, Any]]:
        agent = self._machine.agent
        replies = []
        for label, filename in self._machine.config.chardevs:
            is_open = label not in ("agent0", "qga0") or (agent is not None and agent.is_up)
            replies.append({"frontend-open": is_open, "filename": filename, "label": label})
        return replies

    def _power_down(self) -> dict[str, Any]:
        self._machine.emit("POWERDOWN")
        self._machine.ask_guest_to_shut_down()
        return {}

    def _quit(self, machine: Machine) -> Pending:
        pending = Pending()
        machine.quit()
        machine.backup.stop_for_exit(lambda: pending.resolve({}))
        return pending

    # -- descriptors ---------------------------------------------------------------------------

    def _getfd(self, monitor: Monitor, arguments: Mapping[str, Any]) -> dict[str, Any]:
        fd = monitor.fds.take_arrived()
        name = arguments["fdname"]
        if name[:1].isdigit():
            self._machine.host.close_fd(fd)
            raise CommandError("Parameter 'fdname' expects a name not starting with a digit")
        monitor.fds.name(name, fd)
        return {}

    def _closefd(self, monitor: Monitor, arguments: Mapping[str, Any]) -> dict[str, Any]:
        name = arguments["fdname"]
        fd = monitor.fds.take_named(name)
        if fd is None:
            raise CommandError(f"File descriptor named '{name}' not found")
        self._machine.host.close_fd(fd)
        return {}

    def _add_fd(self, monitor: Monitor, arguments: Mapping[str, Any]) -> dict[str, Any]:
        fd = monitor.fds.take_arrived()
        return dict(
            self._machine.fd_sets.add(
                fd, set_id=arguments.get("fdset-id"), opaque=arguments.get("opaque")
            )
        )

    def _remove_fd(self, _monitor: Monitor, arguments: Mapping[str, Any]) -> dict[str, Any]:
        self._machine.fd_sets.remove(arguments["fdset-id"], arguments.get("fd"))
        return {}

    # -- block devices -------------------------------------------------------------------------

    def _add_node(self, arguments: Mapping[str, Any]) -> None:
        if "node-name" not in arguments:
            raise CommandError("'node-name' must be specified for the root node")
        self._machine.block.add_node(arguments)

    def _remove_node(self, arguments: Mapping[str, Any]) -> None:
        machine, name = self._machine, arguments["node-name"]
        node = machine.block.node(name)
        if node is not None and not node.roots:
            machine.jobs.refuse_if_busy(name)
        machine.block.remove_node(name)

    def _reopen(self, arguments: Mapping[str, Any]) -> None:
        block = self._machine.block
        block.reopen(arguments)
        names = {str(options["node-name"]) for options in arguments["options"]}
        kept = list(block.guarded_disks(names))
        if kept:
            self._machine.keep_point_in_time(kept)

    def _resize(self, arguments: Mapping[str, Any]) -> None:
        name = arguments.get("device", arguments.get("node-name", ""))
        try:
            self._machine.jobs.refuse_if_busy(name)
        except CommandError:
            if self._machine.config.dialect is Dialect.PVE:
                raise
            raise CommandError(f"Device '{name}' is in use") from None
        node = self._machine.block.find(name)
        if node.disk is not None:
            node.disk.resize(round_up(arguments["size"], SECTOR_BYTES))
            for bitmap in node.bitmaps.values():
                bitmap.resize(node.size_bytes)

    def _eject(self, arguments: Mapping[str, Any]) -> None:
        name = arguments.get("device", arguments.get("id", ""))
        backend = self._machine.block.backend_of(name)
        if backend is None:
            raise not_found(name)
        self._machine.jobs.refuse_if_busy(name)
        if not backend.removable:
            raise CommandError(f"Device '{name}' is not removable")
        backend.node = None

    def _refused(self, arguments: Mapping[str, Any], *, drains: bool) -> None:
        """Operations known only for being refused while a job runs."""
        if drains:
            self._machine.jobs.drain()
            self._machine.jobs.drain()
        self._machine.jobs.refuse_if_busy(arguments.get("device", ""))
        raise CommandError("this operation is not simulated")
