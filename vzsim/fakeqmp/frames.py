"""The frame of a request, the same for QMP and the agent: its members and what they are."""

from __future__ import annotations

from typing import Any

from vzsim.fakeqmp.schema import CommandError

_MEMBERS = ("execute", "exec-oob", "arguments", "id")
_PLAIN_MEMBERS = frozenset({"execute", "arguments", "id"})


def command_of(value: Any, *, oob_enabled: bool) -> str:
    """Check the frame of a request and return the command's name.

    Raises: CommandError.
    """
    if not isinstance(value, dict):
        raise CommandError("QMP input must be a JSON object")
    name = value.get("execute")
    has_good_arguments = type(value.get("arguments", value)) is dict
    if type(name) is str and has_good_arguments and value.keys() <= _PLAIN_MEMBERS:
        return name  # most often; what follows tells what is wrong
    if oob_enabled and "execute" in value and "exec-oob" in value:
        raise CommandError("QMP input member 'execute' clashes with 'exec-oob'")
    for member, content in value.items():
        if member not in _MEMBERS or (member == "exec-oob" and not oob_enabled):
            raise CommandError(f"QMP input member '{member}' is unexpected")
        if member in ("execute", "exec-oob") and not isinstance(content, str):
            raise CommandError(f"QMP input member '{member}' must be a string")
        if member == "arguments" and not isinstance(content, dict):
            raise CommandError("QMP input member 'arguments' must be an object")
    name = value.get("execute", value.get("exec-oob"))
    if name is None:
        raise CommandError("QMP input lacks member 'execute'")
    return str(name)
