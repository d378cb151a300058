"""From a QEMU command line to a machine: what each understood option means.

Pure: images are opened through the machine's host. Sockets, the pid file and daemonizing are left
to `qemu_stand_in`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vzdump_qemu.errors import ConfigError
from vzsim.command_line import parse_options, split_arguments
from vzsim.fakeqmp.machine import Machine, MachineConfig
from vzsim.fakeqmp.run_state import RunState
from vzsim.fakeqmp.schema import CommandError, Dialect

_AGENT_PORT_NAME = "org.qemu.guest_agent.0"
_PORT_DRIVERS = ("virtserialport", "virtconsole")


@dataclass(slots=True, kw_only=True)
class LaunchPlan:
    """What a command line asks for.

    Attributes:
        monitor_paths: sockets of the QMP monitors, in order.
        agent_path: socket of the guest agent's port.
        block_options: (option, text) of ``-drive``, ``-blockdev`` and ``-device`` in order.
        script_path: file given by ``-vzsim script=``.
    """

    name: str = ""
    monitor_paths: list[str] = field(default_factory=list)
    agent_path: str = ""
    agent_port_id: str | None = None
    idle_paths: list[str] = field(default_factory=list)
    pid_file: str = ""
    daemonize: bool = False
    show_version: bool = False
    script_path: str = ""
    dialect: Dialect = Dialect.PVE
    initial_state: RunState = RunState.RUNNING
    no_shutdown: bool = False
    no_reboot: bool = False
    block_options: list[tuple[str, str]] = field(default_factory=list)
    chardevs: dict[str, dict[str, str]] = field(default_factory=dict)

    def machine_config(self) -> MachineConfig:
        """The part that the machine itself looks at."""
        names = tuple(
            (label, f"unix:{options.get('path', '')},server=on")
            for label, options in self.chardevs.items()
        )
        return MachineConfig(
            dialect=self.dialect,
            name=self.name,
            initial_state=self.initial_state,
            no_shutdown=self.no_shutdown,
            no_reboot=self.no_reboot,
            agent_port_id=self.agent_port_id,
            chardevs=names,
        )


def plan_launch(arguments: Sequence[str]) -> LaunchPlan:
    """Understand a command line (without the program's name).

    Raises: ConfigError with QEMU's text for unknown options and dangling references.
    """
    plan = LaunchPlan()
    monitors: list[str] = []
    ports: list[dict[str, str]] = []
    for option, value in split_arguments(arguments):
        match option:
            case "name":
                plan.name = parse_options(value, first_key="guest").get("guest", "")
            case "chardev":
                options = parse_options(value, first_key="backend")
                plan.chardevs[options.get("id", "")] = options
            case "mon":
                options = parse_options(value, first_key="chardev")
                if options.get("mode", "readline") == "control":
                    monitors.append(options["chardev"])
            case "qmp" | "qmp-pretty":
                plan.monitor_paths.append(_unix_path(value))
            case "serial" | "parallel" if value.startswith("unix:"):
                plan.idle_paths.append(_unix_path(value))
            case "drive" | "blockdev" | "object":
                plan.block_options.append((option, value))
            case "device":
                options = parse_options(value, first_key="driver")
                if options.get("driver") in _PORT_DRIVERS:
                    ports.append(options)
                plan.block_options.append((option, value))
            case _:
                _understand_plain(plan, option, value)
    _join_channels(plan, monitors, ports)
    return plan


def _understand_plain(plan: LaunchPlan, option: str, value: str) -> None:
    match option:
        case "pidfile":
            plan.pid_file = value
        case "daemonize":
            plan.daemonize = True
        case "version":
            plan.show_version = True
        case "S":
            plan.initial_state = RunState.PRELAUNCH
        case "incoming":
            plan.initial_state = RunState.INMIGRATE
        case "no-shutdown":
            plan.no_shutdown = True
        case "no-reboot":
            plan.no_reboot = True
        case "vzsim":
            options = parse_options(value)
            plan.script_path = options.get("script", plan.script_path)
            plan.dialect = Dialect(options.get("dialect", plan.dialect.value))
        case _:
            # Accepted and not simulated.
            return


def _join_channels(plan: LaunchPlan, monitors: list[str], ports: list[dict[str, str]]) -> None:
    for chardev in monitors:
        if chardev not in plan.chardevs:
            raise ConfigError(f'-mon chardev={chardev}: chardev "{chardev}" not found')
        options = plan.chardevs[chardev]
        if options.get("server", "off") == "on" and "path" in options:
            plan.monitor_paths.append(options["path"])
    for port in ports:
        chardev = port.get("chardev", "")
        if chardev not in plan.chardevs:
            raise ConfigError(f"-device {port['driver']}: can't find chardev '{chardev}'")
        if port.get("name") == _AGENT_PORT_NAME:
            plan.agent_path = plan.chardevs[chardev].get("path", "")
            plan.agent_port_id = port.get("id", "")


def attach_disks(machine: Machine, plan: LaunchPlan) -> None:
    """Open the images and attach the devices.

    Raises: ConfigError with QEMU's text.
    """
    for option, value in plan.block_options:
        try:
            match option:
                case "drive":
                    machine.block.add_drive(parse_options(value))
                case "blockdev":
                    machine.block.add_node(parse_nested(value))
                case "object":
                    _add_object(machine, parse_nested(value, first_key="qom-type"))
                case _:
                    options = parse_options(value, first_key="driver")
                    if "drive" in options:
                        machine.block.attach_device(
                            options["drive"], options.get("id", ""), options.get("driver", "")
                        )
        except CommandError as error:
            raise ConfigError(f"-{option} {value}: {error.description}") from error


def _add_object(machine: Machine, options: dict[str, Any]) -> None:
    # Others (memory backends, I/O threads) are accepted and have no effect.
    if options.get("qom-type") == "throttle-group":
        machine.block.objects.add(options)


def parse_nested(value: str, *, first_key: str = "driver") -> dict[str, Any]:
    """Options as JSON, or as a list whose keys have dots."""
    if value.startswith("{"):
        found = json.loads(value)
        return dict(found)
    nested: dict[str, Any] = {}
    for key, text in parse_options(value, first_key=first_key).items():
        *parents, last = key.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = text == "on" if text in ("on", "off") else text
    return nested


def _unix_path(value: str) -> str:
    options = parse_options(value.removeprefix("unix:"), first_key="path")
    return options["path"]
