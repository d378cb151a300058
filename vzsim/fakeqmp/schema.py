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

from vzsim.fakeqmp.schema_tables import BLOCK, COMMON, DAEMON_NAMES, NAMES_ONLY, PATCHED


class Dialect(Enum):
    """Whose QEMU: the Proxmox build, the plain one, or the storage daemon beside it."""

    PVE = "pve"
    UPSTREAM = "upstream"
    STORAGE_DAEMON = "storage-daemon"


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


_BARE = dict.fromkeys(NAMES_ONLY.split(), ())
_SHARED = {**_BARE, **_table(COMMON), **_table(BLOCK)}
_COMMANDS: Mapping[Dialect, Mapping[str, tuple[Argument, ...] | None]] = MappingProxyType(
    {
        Dialect.PVE: {**_SHARED, **_table(PATCHED)},
        Dialect.UPSTREAM: _SHARED,
        # What is not spelt out takes anything, and is told to be not simulated.
        Dialect.STORAGE_DAEMON: {name: _SHARED.get(name) for name in DAEMON_NAMES.split()},
    }
)
# Commands whose union members this table does not spell out: leftovers are theirs to judge.
_OPEN_ENDED = _open_ended(COMMON) | _open_ended(BLOCK)


def command_names(dialect: Dialect) -> tuple[str, ...]:
    """All commands of a dialect; the daemon's in the order in which it lists them."""
    names = tuple(_COMMANDS[dialect])
    return names if dialect is Dialect.STORAGE_DAEMON else tuple(sorted(names))


def check_command(dialect: Dialect, name: str, arguments: Mapping[str, Any]) -> None:
    """Check that a command exists and takes these arguments.

    Raises: CommandError with QEMU's class and text.
    """
    table = _COMMANDS[dialect]
    if name not in table:
        raise CommandError(f"The command {name} has not been found", "CommandNotFound")
    expected = table[name]
    if expected is not None:
        check_arguments(expected, arguments, open_ended=name in _OPEN_ENDED)


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
