"""Which way the bytes of one VM travel, and why: asked of the QEMU that is there.

Owns the decision alone; the paths are built by `archive_step`. The operator's word comes first;
otherwise a QEMU with its own backup job does the work itself, and any other is pulled from.
Source: architecture, section 4; failure modes 11, 12.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vzdump_qemu.engine.pull_disks import QUERY_TIMEOUT_S
from vzdump_qemu.errors import ConfigError
from vzdump_qemu.plan.options import DataPathChoice
from vzdump_qemu.ports import Qmp

PULL_SINCE = (7, 2)
_PULL_COMMANDS = ("blockdev-reopen", "block-export-add", "nbd-server-start", "qom-set")
_PULL_DRIVER = "snapshot-access"
_PULL_MEMBERS = frozenset({"on-cbw-error", "cbw-timeout"})


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuAbilities:
    """What one QEMU can do for a backup.

    Attributes:
        version: as it tells it, ``7.2.22``.
        has_backup_command: it is patched and has a job of its own.
        missing_for_pull: what it lacks to be pulled from, in words; empty if nothing.
    """

    version: str
    has_backup_command: bool
    missing_for_pull: str


async def query_abilities(qmp: Qmp) -> QemuAbilities:
    """Ask a QEMU. Raises QmpError."""
    version = (await qmp.execute("query-version", timeout_s=QUERY_TIMEOUT_S))["qemu"]
    numbers = (int(version["major"]), int(version["minor"]), int(version["micro"]))
    commands = await qmp.execute("query-commands", timeout_s=QUERY_TIMEOUT_S)
    names = {str(command.get("name", "")) for command in commands}
    missing = _missing_version(numbers[:2]) or _missing_commands(names)
    if not missing:
        schema = await qmp.execute("query-qmp-schema", timeout_s=QUERY_TIMEOUT_S)
        missing = _missing_drivers(schema)
    return QemuAbilities(
        version=".".join(str(number) for number in numbers),
        has_backup_command="backup" in names,
        missing_for_pull=missing,
    )


def choose_live_path(asked: DataPathChoice, abilities: QemuAbilities) -> tuple[DataPathChoice, str]:
    """NATIVE or PULL for a VM whose QEMU is there, and the reason (empty: it was asked for).

    Raises: ConfigError if this QEMU cannot do what was asked, or nothing that is needed.
    """
    if asked is DataPathChoice.PULL:
        _require_pull(abilities)
        return asked, ""
    if asked is DataPathChoice.NATIVE and not abilities.has_backup_command:
        raise ConfigError(
            f"QEMU {abilities.version} has no 'backup' command",
            hint="that path needs Proxmox's patched QEMU; --data-path auto takes another",
        )
    if asked is DataPathChoice.NATIVE:
        return asked, ""
    if abilities.has_backup_command:
        return DataPathChoice.NATIVE, f"QEMU {abilities.version} has a backup job of its own"
    _require_pull(abilities)
    return DataPathChoice.PULL, f"QEMU {abilities.version} has no 'backup' command"


def _require_pull(abilities: QemuAbilities) -> None:
    if abilities.missing_for_pull:
        raise ConfigError(
            f"QEMU {abilities.version} cannot be pulled from: {abilities.missing_for_pull}",
            hint="back the VM up while it is off, or use a newer QEMU",
        )


def _missing_version(version: tuple[int, ...]) -> str:
    if version >= PULL_SINCE:
        return ""
    return f"it is older than {PULL_SINCE[0]}.{PULL_SINCE[1]}"


def _missing_commands(names: set[str]) -> str:
    missing = [name for name in _PULL_COMMANDS if name not in names]
    return f"it has no command '{missing[0]}'" if missing else ""


def _missing_drivers(schema: Sequence[Mapping[str, Any]]) -> str:
    """A build may leave drivers out; the schema tells, whatever the version says."""
    has_driver = has_members = False
    for entity in schema:
        kind = entity.get("meta-type")
        if kind == "enum":
            has_driver = has_driver or _PULL_DRIVER in entity.get("values", ())
        elif kind == "object" and not has_members:
            members = entity.get("members", ())
            if len(members) >= len(_PULL_MEMBERS):
                has_members = {str(member.get("name", "")) for member in members} >= _PULL_MEMBERS
        if has_driver and has_members:
            return ""
    if not has_driver:
        return f"it has no block driver '{_PULL_DRIVER}'"
    return "its 'copy-before-write' cannot spare the guest"
