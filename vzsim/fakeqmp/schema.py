"""Which commands exist per dialect and what arguments they take.

Owns the argument tables and the checks whose texts equal QEMU's input visitor: members are looked
at in schema order (missing, wrong type), what is left over is "unexpected". Carrying out is left to
the command modules. Source: the recorded ``query-qmp-schema`` replies and sessions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any


class Dialect(Enum):
    """Whose QEMU: the Proxmox build or the plain one."""

    PVE = "pve"
    UPSTREAM = "upstream"


class CommandError(Exception):
    """A command that fails: class and text of the error object."""

    def __init__(self, description: str, error_class: str = "GenericError") -> None:
        super().__init__(description)
        self.description = description
        self.error_class = error_class


def not_found(device_id: str) -> CommandError:
    """The error of a device name that nobody bears."""
    return CommandError(f"Device '{device_id}' not found", "DeviceNotFound")


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One member of a command's arguments.

    ``kind`` is one of str, int, bool, dict, list, any, or an enumeration ``a|b|c``.
    """

    name: str
    kind: str
    optional: bool


_TYPES: Mapping[str, tuple[type, str]] = MappingProxyType(
    {
        "str": (str, "string"),
        "int": (int, "integer"),
        "bool": (bool, "boolean"),
        "dict": (dict, "object"),
        "list": (list, "array"),
    }
)

_NAMES_ONLY = (
    "query-status query-version query-name query-uuid query-block"
    " query-jobs query-block-jobs query-chardev query-events query-commands query-fdsets"
    " query-current-machine query-machines query-cpus-fast query-migrate query-block-exports stop"
    " cont quit system_powerdown system_reset system_wakeup migrate_cancel inject-nmi"
)

# "name argument:kind optional?:kind ..."; the order of members is QEMU's.
_COMMON = """
qmp_capabilities enable?:list
query-blockstats query-nodes?:bool
query-named-block-nodes flat?:bool
getfd fdname:str
closefd fdname:str
add-fd fdset-id?:int opaque?:str
remove-fd fdset-id:int fd?:int
human-monitor-command command-line:str cpu-index?:int
blockdev-add driver:str *
blockdev-del node-name:str
block_resize device?:str node-name?:str size:int
eject device?:str id?:str force?:bool
block-job-set-speed device:str speed:int
block-job-cancel device:str force?:bool
block-job-pause device:str
block-job-resume device:str
blockdev-snapshot-sync device?:str node-name?:str snapshot-file:str format?:str *
block-stream device:str *
watchdog-set-action action:reset|shutdown|poweroff|pause|debug|none|inject-nmi
set-action reboot?:reset|shutdown shutdown?:poweroff|pause panic?:str watchdog?:str
migrate uri?:str channels?:list detach?:bool resume?:bool
migrate-set-capabilities capabilities:list
migrate-pause
drive-mirror job-id?:str device:str target:str format?:str node-name?:str replaces?:str \
sync:full|top|none|incremental|bitmap mode?:str speed?:int *
nbd-server-start addr:dict tls-creds?:str tls-authz?:str max-connections?:int
nbd-server-stop
block-export-add type:nbd|vhost-user-blk|fuse|vduse-blk id:str *
block-export-del id:str mode?:safe|hard
"""

_PATCHED = """
backup backup-file:str password?:str keyfile?:str key-password?:str master-keyfile?:str \
fingerprint?:str backup-ns?:str backup-id?:str backup-time?:int use-dirty-bitmap?:bool \
compress?:bool encrypt?:bool format?:vma|pbs config-file?:str firewall-file?:str devlist?:str \
speed?:int max-workers?:int fleecing?:bool
backup-cancel
query-backup
query-pbs-bitmap-info
query-proxmox-support
backup-access-setup target-id:str devices:list
backup-access-teardown target-id:str success:bool
"""


def _table(text: str) -> dict[str, tuple[Argument, ...] | None]:
    table: dict[str, tuple[Argument, ...] | None] = {}
    for line in text.replace("\\\n", " ").strip().splitlines():
        name, *members = line.split()
        arguments = []
        for member in members:
            if member == "*":
                continue
            label, kind = member.split(":", 1)
            arguments.append(
                Argument(name=label.rstrip("?"), kind=kind, optional=label.endswith("?"))
            )
        table[name] = tuple(arguments)
    return table


def _open_ended(text: str) -> frozenset[str]:
    lines = text.replace("\\\n", " ").strip().splitlines()
    return frozenset(line.split()[0] for line in lines if line.endswith(" *"))


_BARE = dict.fromkeys(_NAMES_ONLY.split(), ())
_COMMANDS: Mapping[Dialect, Mapping[str, tuple[Argument, ...] | None]] = MappingProxyType(
    {
        Dialect.PVE: {**_BARE, **_table(_COMMON), **_table(_PATCHED)},
        Dialect.UPSTREAM: {**_BARE, **_table(_COMMON)},
    }
)
# Commands whose union members this table does not spell out: leftovers are theirs to judge.
_OPEN_ENDED = _open_ended(_COMMON)


def command_names(dialect: Dialect) -> tuple[str, ...]:
    """All commands of a dialect, sorted."""
    return tuple(sorted(_COMMANDS[dialect]))


def check_command(dialect: Dialect, name: str, arguments: Mapping[str, Any]) -> None:
    """Check that a command exists and takes these arguments.

    Raises: CommandError with QEMU's class and text.
    """
    table = _COMMANDS[dialect]
    if name not in table:
        raise CommandError(f"The command {name} has not been found", "CommandNotFound")
    check_arguments(table[name] or (), arguments, open_ended=name in _OPEN_ENDED)


def check_arguments(
    expected: tuple[Argument, ...], arguments: Mapping[str, Any], *, open_ended: bool = False
) -> None:
    """Check members in schema order, then look for leftovers.

    Raises: CommandError with QEMU's text.
    """
    for argument in expected:
        if argument.name not in arguments:
            if argument.optional:
                continue
            raise CommandError(f"Parameter '{argument.name}' is missing")
        _check_value(argument, arguments[argument.name])
    known = {argument.name for argument in expected}
    for name in arguments:
        if name not in known and not open_ended:
            raise CommandError(f"Parameter '{name}' is unexpected")


def _check_value(argument: Argument, value: Any) -> None:
    if argument.kind == "any":
        return
    if argument.kind in _TYPES:
        wanted, word = _TYPES[argument.kind]
        # bool is a subclass of int in Python, not in QAPI.
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise CommandError(f"Invalid parameter type for '{argument.name}', expected: {word}")
        return
    if not isinstance(value, str):
        raise CommandError(f"Invalid parameter type for '{argument.name}', expected: string")
    if value not in argument.kind.split("|"):
        raise CommandError(f"Parameter '{argument.name}' does not accept value '{value}'")
