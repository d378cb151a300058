"""From a qemu-storage-daemon command line to a simulated one: options in their order.

Pure, like `launch`. Source: recorded session ``qsd-command-line``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vzdump_qemu.errors import ConfigError
from vzsim.command_line import parse_options
from vzsim.fakeqmp.machine import Machine, MachineConfig
from vzsim.fakeqmp.schema import CommandError, Dialect
from vzsim.launch import parse_nested

_WITH_VALUE = ("chardev", "monitor", "blockdev", "nbd-server", "export", "pidfile", "object")
_STEPS = ("object", "blockdev", "nbd-server", "export")


@dataclass(slots=True, kw_only=True)
class DaemonPlan:
    """What a command line asks for.

    Attributes:
        steps: (option, text) of what is set up, in order.
    """

    monitor_paths: list[str] = field(default_factory=list)
    pid_file: str = ""
    daemonize: bool = False
    steps: list[tuple[str, str]] = field(default_factory=list)
    chardevs: dict[str, dict[str, str]] = field(default_factory=dict)

    def machine_config(self) -> MachineConfig:
        """The part that the process itself looks at."""
        return MachineConfig(
            dialect=Dialect.STORAGE_DAEMON,
            chardevs=tuple(
                (label, f"unix:{options.get('path', '')},server=on")
                for label, options in self.chardevs.items()
            ),
        )


def plan_daemon(arguments: Sequence[str]) -> DaemonPlan:
    """Understand a command line (without the program's name).

    Raises: ConfigError for unknown options and dangling references.
    """
    plan, rest = DaemonPlan(), list(arguments)
    while rest:
        word = rest.pop(0)
        option = word.removeprefix("--")
        if option == "daemonize":
            plan.daemonize = True
            continue
        if option not in _WITH_VALUE or not word.startswith("--"):
            raise ConfigError(f"unrecognized option '{word}'")
        if not rest:
            raise ConfigError(f"option '{word}' requires an argument")
        _understand(plan, option, rest.pop(0))
    return plan


def _understand(plan: DaemonPlan, option: str, value: str) -> None:
    if option in _STEPS:
        plan.steps.append((option, value))
    elif option == "pidfile":
        plan.pid_file = value
    elif option == "chardev":
        options = parse_options(value, first_key="backend")
        plan.chardevs[options.get("id", "")] = options
    elif option == "monitor":
        name = parse_options(value, first_key="chardev")["chardev"]
        if name not in plan.chardevs:
            raise ConfigError(f'--monitor {value}: chardev "{name}" not found')
        plan.monitor_paths.append(plan.chardevs[name]["path"])


def carry_out(daemon: Machine, plan: DaemonPlan) -> None:
    """Set up nodes, server and exports. Raises: ConfigError with QEMU's text."""
    for option, value in plan.steps:
        first_key = "qom-type" if option == "object" else "driver"
        options: dict[str, Any] = parse_nested(value, first_key=first_key)
        try:
            match option:
                case "object":
                    daemon.block.objects.add(options)
                case "blockdev":
                    daemon.block.add_node(options)
                case "nbd-server":
                    daemon.exports.start_server(options)
                case _:
                    daemon.exports.add(options)
        except CommandError as error:
            raise ConfigError(f"--{option} {value}: {error.description}") from error
