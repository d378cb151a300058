"""The script of one simulated machine: what shall differ from a well-behaved QEMU.

A `Script` is a frozen value, made in Python or read from TOML (`parse_script`). Unknown keys are
refused with one line. Every table is optional. Schema by example::

    [[command]]                    # any number of rules; the first that fits is used
    name = "backup"                # a QMP command or, with "guest-", an agent command
    nth = 1                        # only the n-th time (from 1); absent: every time
    error = "no space"             # answer with this error, do nothing ...
    error_class = "GenericError"
    reply = { UUID = "x" }         # ... or with this value, do nothing
    patch = { status = "odd" }     # or do it, and put these members into the real reply
    drop = ["UUID"]                # ... and take these out
    reply_id = "wrong"             # reply with this id instead of the request's
    delay_s = 2.5                  # reply that late; the whole monitor service waits meanwhile
    silent = true                  # do it, never reply (the service goes on)
    close = "after"                # close the client's connection before/after the effect
    die = "before"                 # the process dies before/after the effect

    [[event]]                      # an event of our own
    at_s = 1.5                     # seconds after the machine came up
    name = "BLOCK_IO_ERROR"
    data = { device = "drive-scsi0" }
    count = 1                      # so many of them, one right after the other

    [backup]                       # the backup job
    bytes_per_s = 4194304          # pace of the job, whatever `speed` says
    fail_at_bytes = 10485760       # the job fails there ...
    fail_text = "job failed with err -5 - Input/output error"
    die_at_bytes = 5242880         # the process dies there
    stall_at_bytes = 1048576       # the job (and nothing else) stands still there ...
    stall_s = 60.0                 # ... for so long
    uuid = "..."                   # query-backup names this uuid instead
    status = "odd"                 # query-backup says so once the job has ended
    errmsg = "..."                 # with this text
    transferred_off_by = -65536    # added to the count of transferred bytes

    [agent]
    state = "running"              # or "absent"
    starts_after_s = 3.0           # seconds after the guest runs
    filesystem_count = 2           # what freeze and thaw return
    freeze_delay_s = 30.0          # slow hook scripts
    thaw_delay_s = 1.0
    freeze_error = "fsfreeze hook has failed with status 3"
    thaw_error = "..."
    thaws_itself_after_s = 10.0    # as Windows does; a thaw after that is an error
    disabled = ["guest-fsfreeze-freeze"]
    stale_replies = [{ return = 7 }]   # in front of the first reply to each connection
    dies_at = "guest-fsfreeze-freeze"  # the agent gets this request, then is gone
    dies_after = "guest-fsfreeze-freeze"  # the agent answers this request, then is gone

    [guest]
    writes_per_s = 50.0            # the guest writes to its disks (not while frozen or stopped)
    write_bytes = 65536
    seed = 1
    keep_point_in_time = "DIR"     # copy each disk there when `backup` fixes the instant
    poweroff_after_s = 10.0
    reset_after_s = 10.0
    shutdown_delay_s = 5.0         # from system_powerdown or guest-shutdown to the power-off
    ignores_shutdown = true        # asked to shut down, it does not

    [process]
    die_at_s = 4.0                 # the process is gone, whatever it does
"""

from __future__ import annotations

import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from vzdump_qemu.errors import ConfigError


class Moment(Enum):
    """Before or after the command has its effect."""

    BEFORE = "before"
    AFTER = "after"


class AgentPresence(Enum):
    """Whether the guest runs an agent."""

    RUNNING = "running"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRule:
    """What one command does differently."""

    name: str
    nth: int = 0
    error: str | None = None
    error_class: str = "GenericError"
    reply: Any = None
    patch: Mapping[str, Any] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    reply_id: Any = None
    delay_s: float = 0.0
    silent: bool = False
    close: Moment | None = None
    die: Moment | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRule:
    """One event that the machine sends by itself."""

    at_s: float
    name: str
    data: Mapping[str, Any] = field(default_factory=dict)
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupRules:
    """What the backup job does differently."""

    bytes_per_s: int = 0
    fail_at_bytes: int | None = None
    fail_text: str = "job failed with err -5 - Input/output error"
    die_at_bytes: int | None = None
    stall_at_bytes: int | None = None
    stall_s: float = 0.0
    uuid: str | None = None
    status: str | None = None
    errmsg: str | None = None
    transferred_off_by: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRules:
    """How the guest agent behaves."""

    state: AgentPresence = AgentPresence.RUNNING
    starts_after_s: float = 0.0
    filesystem_count: int = 1
    freeze_delay_s: float = 0.0
    thaw_delay_s: float = 0.0
    freeze_error: str | None = None
    thaw_error: str | None = None
    thaws_itself_after_s: float = 0.0
    disabled: tuple[str, ...] = ()
    stale_replies: tuple[Mapping[str, Any], ...] = ()
    dies_at: str | None = None
    dies_after: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestRules:
    """What the guest does by itself."""

    writes_per_s: float = 0.0
    write_bytes: int = 65536
    seed: int = 0
    keep_point_in_time: str | None = None
    poweroff_after_s: float | None = None
    reset_after_s: float | None = None
    shutdown_delay_s: float = 0.0
    ignores_shutdown: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRules:
    """What the QEMU process does by itself."""

    die_at_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """All rules of one machine; the default is a well-behaved one."""

    command: tuple[CommandRule, ...] = ()
    event: tuple[EventRule, ...] = ()
    backup: BackupRules = BackupRules()
    agent: AgentRules = AgentRules()
    guest: GuestRules = GuestRules()
    process: ProcessRules = ProcessRules()


def parse_script(text: str) -> Script:
    """Read a script from TOML.

    Raises: ConfigError, one line naming the place, for bad TOML, unknown keys and wrong types.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"script: {error}") from error
    return build_script(document, "script")


def build_script(tables: Mapping[str, Any], where: str) -> Script:
    """Make a script of tables that were read already.

    Args:
        where: what stands before the place in an error.
    Raises: ConfigError as `parse_script`.
    """
    script: Script = _build(Script, tables, where)
    return script


def _build(kind: type[Any], table: Mapping[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    known = {entry.name for entry in fields(kind)}
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{key}'")
    values = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in table.items()}
    try:
        return kind(**values)
    except TypeError:
        missing = [name for name in ("name", "at_s") if name in known and name not in values]
        raise ConfigError(f"{where}: key '{missing[0]}' is missing") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert(get_args(hint)[0], value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: a list is expected")
        inner = get_args(hint)[0]
        return tuple(
            _convert(inner, entry, f"{where}[{index}]") for index, entry in enumerate(value)
        )
    if origin is not None:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: a table is expected")
        return value
    return _convert_plain(hint, value, where)


def _convert_plain(hint: Any, value: Any, where: str) -> Any:
    if hasattr(hint, "__dataclass_fields__"):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: a table is expected")
        return _build(hint, value, where)
    if issubclass(hint, Enum):
        choices = [member.value for member in hint]
        if value not in choices:
            raise ConfigError(f"{where}: must be one of {', '.join(choices)}")
        return hint(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: a value of type {hint.__name__} is expected")
    return value
