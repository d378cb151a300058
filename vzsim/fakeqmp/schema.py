"""Which commands a dialect has and what arguments they take, by the recorded schemas.

Owns the dialects and the errors of commands; how a schema is read and what it says about a value is
`qapi`'s, carrying out is left to the command modules. `check_arguments` is for those that no schema
describes: the guest agent cannot be asked for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from types import MappingProxyType
from typing import Any

from vzsim.fakeqmp.qapi import QapiSchema, ValueRefused


class Dialect(Enum):
    """Whose QEMU: the Proxmox build, the plain one, or the storage daemon beside it."""

    PVE = "pve"
    UPSTREAM = "upstream"
    STORAGE_DAEMON = "storage-daemon"

    # Each is there once, and looked up with every command: no call into Python.
    __hash__ = object.__hash__


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


_RECORDED: Mapping[Dialect, str] = MappingProxyType(
    {
        Dialect.PVE: "pve-10.0.2",
        Dialect.UPSTREAM: "stock-7.2",
        Dialect.STORAGE_DAEMON: "qsd-7.2",
    }
)
_TYPES: Mapping[str, tuple[type, str]] = MappingProxyType(
    {
        "str": (str, "string"),
        "int": (int, "integer"),
        "bool": (bool, "boolean"),
        "dict": (dict, "object"),
        "list": (list, "array"),
    }
)


@cache
def schema_of(dialect: Dialect) -> QapiSchema:
    """The schema that the real program of that dialect told."""
    return QapiSchema.shipped(_RECORDED[dialect])


def command_names(dialect: Dialect) -> tuple[str, ...]:
    """All commands of a dialect in the order of ``query-commands``: the reverse of the schema's."""
    return tuple(reversed(schema_of(dialect).commands))


def allows_oob(dialect: Dialect, name: str) -> bool:
    """Whether a command may be carried out of band."""
    return bool(schema_of(dialect).commands[name].get("allow-oob", False))


def check_command(dialect: Dialect, name: str, arguments: Mapping[str, Any]) -> None:
    """Check that a command exists and takes these arguments.

    Raises: CommandError with QEMU's class and text.
    """
    schema = schema_of(dialect)
    if name not in schema.commands:
        raise CommandError(f"The command {name} has not been found", "CommandNotFound")
    try:
        schema.check_arguments(name, arguments)
    except ValueRefused as error:
        raise CommandError(str(error)) from None


def check_arguments(expected: tuple[Argument, ...], arguments: Mapping[str, Any]) -> None:
    """Check members in their order, then look for leftovers.

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
        if name not in known:
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
