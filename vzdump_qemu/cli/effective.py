"""Command line, vzdump.conf and defaults joined into the options of one job.

Owns precedence and the conflicts between options; reading the file is left to its caller, its
grammar to `formats`. Source: host behaviour, sections 1.1, 1.3, 1.6 and 2.2.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from vzdump_qemu.cli.vzdump_arguments import OptionSpec, find_option
from vzdump_qemu.errors import ConfigError
from vzdump_qemu.events import BackupMode
from vzdump_qemu.formats.property_string import (
    PropertyKind,
    PropertySchema,
    parse_property_string,
)
from vzdump_qemu.formats.vzdump_conf import CONF_PATH, parse_vzdump_conf
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.plan.compression import choose_compressor
from vzdump_qemu.plan.options import (
    BackupOptions,
    BatchOptions,
    DataPathChoice,
    FleecingOptions,
    TargetOptions,
)
from vzdump_qemu.units import KIB, MIB

LOG_DIRECTORY = "/var/log/vzdump"
SERVER_NAMES = frozenset(("repository", "ns", "keyfile", "master-pubkey-file", "fingerprint"))
"""Options that say which backup server is meant."""

# Which VMs are meant is said by each command line anew.
_SELECTION_NAMES = frozenset(("all", "exclude", "pool", "node", "stop"))
_SECONDS_PER_MINUTE = 60
_MAX_WORKERS_MAX = 256
_MAX_WORKERS_DEFAULT = 16
_FLEECING = PropertySchema(
    keys={"enabled": PropertyKind.BOOLEAN, "storage": PropertyKind.TEXT}, default_key="enabled"
)
_PERFORMANCE = PropertySchema(
    keys={"max-workers": PropertyKind.INTEGER, "pbs-entries-max": PropertyKind.INTEGER}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions:
    """What vzdump.conf says, by option name, and what is wrong with it."""

    values: Mapping[str, Any]
    warnings: tuple[str, ...]


def read_file_options(text: str) -> FileOptions:
    """Read vzdump.conf; a value that cannot be used costs a warning and is ignored."""
    parsed = parse_vzdump_conf(text)
    warnings = list(parsed.warnings)
    values: dict[str, Any] = {}
    for name, value in parsed.options.items():
        spec = find_option(name)
        if spec is not None and not spec.own:
            values[name] = _convert(spec, value, warnings)
    values = {name: value for name, value in values.items() if value is not None}
    return FileOptions(values=values, warnings=tuple(warnings))


def _convert(spec: OptionSpec, value: str, warnings: list[str]) -> Any:
    try:
        return spec.type.convert(value, None, None)
    except click.UsageError as error:
        warnings.append(f"parse error in '{CONF_PATH}' - '{spec.name}': {error.message}")
        return None


def merge_options(given: Mapping[str, Any], of_file: Mapping[str, Any]) -> dict[str, Any]:
    """Join both by option name; the command line wins, all that name a target go together."""
    merged = {name: value for name, value in of_file.items() if name not in _SELECTION_NAMES}
    dropped: tuple[str, ...] = ()
    if not SERVER_NAMES.isdisjoint(given):
        # A server compresses by itself; what the file says is meant for archives.
        dropped = ("storage", "dumpdir", "stdout", "compress")
    elif "storage" in given or "dumpdir" in given:
        dropped = ("storage", "dumpdir")
    merged = {name: value for name, value in merged.items() if name not in dropped}
    performance = {
        **_parse_performance(of_file.get("performance", "")),
        **_parse_performance(given.get("performance", "")),
    }
    return {
        **merged,
        **given,
        "performance": ",".join(f"{key}={value}" for key, value in performance.items()),
    }


def make_backup_options(
    merged: Mapping[str, Any],
    *,
    root: str,
    command_line: str,
    cpu_count: int,
    server: PbsTarget | None = None,
    batch: BatchOptions | None = None,
) -> BackupOptions:
    """Turn joined options into those of the engine.

    Args:
        root: prefix of the node, ``/`` for this host.
        cpu_count: what thread counts are derived from.
        server: that the command line named, or the environment where it counts.
        batch: what was said of the job as a whole.
    Raises:
        ConfigError: options that contradict each other.
    """
    compressor = choose_compressor(
        merged.get("compress", "0"),
        pigz=merged.get("pigz", 0),
        zstd=merged.get("zstd", 1),
        cpu_count=cpu_count,
    )
    return BackupOptions(
        target=_make_target(merged, server),
        mode=BackupMode(merged.get("mode", "snapshot")),
        compressor=compressor.argv,
        archive_extension=compressor.extension,
        rate_limit_bytes_per_s=merged.get("bwlimit", 0) * KIB,
        stop_wait_s=float(merged.get("stopwait", 10) * _SECONDS_PER_MINUTE),
        lock_wait_s=float(merged.get("lockwait", 180) * _SECONDS_PER_MINUTE),
        max_workers=_parse_performance(merged.get("performance", "")).get(
            "max-workers", _MAX_WORKERS_DEFAULT
        ),
        io_priority=merged.get("ionice", 7),
        fleecing=_parse_fleecing(
            merged.get("fleecing", ""), limit_bytes=merged.get("fleecing-limit", 0) * MIB
        ),
        batch=batch or BatchOptions(),
        data_path=DataPathChoice(merged.get("data-path", "auto")),
        command_line=command_line,
        log_directory=f"{root.rstrip('/')}{LOG_DIRECTORY}",
    )


def _make_target(merged: Mapping[str, Any], server: PbsTarget | None) -> TargetOptions:
    temp_directory = _absolute(merged.get("tmpdir", ""))
    if server is not None:
        return TargetOptions(pbs=server, temp_directory=temp_directory)
    storage_id, directory = merged.get("storage", ""), merged.get("dumpdir", "")
    to_stdout = bool(merged.get("stdout"))
    for name, is_given in (("stdout", to_stdout), ("dumpdir", bool(directory))):
        if storage_id and is_given:
            raise ConfigError(
                f"cannot use options 'storage' and '{name}' at the same time",
                hint=f"a 'storage' in {CONF_PATH} counts as well",
            )
    if not (storage_id or directory or to_stdout):
        storage_id = "local"
    return TargetOptions(
        storage_id=storage_id,
        dump_directory=_absolute(directory),
        to_stdout=to_stdout,
        temp_directory=temp_directory,
    )


def refuse_beside_server(merged: Mapping[str, Any]) -> None:
    """Raise ConfigError for an option that cannot stand beside a backup server."""
    hints = {
        "storage": "a backup server that is a storage is named by --storage alone",
        "dumpdir": "a backup goes to one place",
        "stdout": "a backup goes to one place",
        "compress": "what goes to a backup server is compressed in any case",
    }
    for name, hint in hints.items():
        if merged.get(name, "0") not in ("0", "", False):
            raise ConfigError(
                f"cannot use options 'repository' and '{name}' at the same time", hint=hint
            )


def _absolute(path: str) -> str:
    """What another process puts back after our death must not depend on where we stood."""
    return os.path.abspath(path) if path else ""


def _parse_fleecing(text: str, *, limit_bytes: int) -> FleecingOptions:
    values = parse_property_string(text, _FLEECING)
    enabled = bool(values.get("enabled", False))
    storage_id = str(values.get("storage", ""))
    if enabled and not storage_id:
        raise ConfigError(
            "fleecing: 'storage' parameter is required when 'enabled' is set",
            hint="--fleecing enabled=1,storage=ID",
        )
    return FleecingOptions(enabled=enabled, storage_id=storage_id, limit_bytes=limit_bytes)


def _parse_performance(text: str) -> dict[str, int]:
    """Read ``performance``; `pbs-entries-max` is for containers and means nothing here."""
    values = {key: int(value) for key, value in parse_property_string(text, _PERFORMANCE).items()}
    if not 1 <= values.get("max-workers", 1) <= _MAX_WORKERS_MAX:
        raise ConfigError(f"performance: max-workers must be 1 to {_MAX_WORKERS_MAX}")
    return values


def rebuild_command_line(vmids: Sequence[int], given: Mapping[str, Any]) -> str:
    """The command line as the log names it: ``vzdump 100 --mode stop``.

    Args:
        vmids: as named on the command line.
        given: options of the command line by name, in their order.
    """
    words = ["vzdump", *(str(vmid) for vmid in vmids)]
    for name, value in given.items():
        spec = find_option(name)
        if spec is None or spec.own or name in ("stdout", "job-id"):
            continue
        # What may be repeated comes as several texts, but for VMIDs, which were joined before.
        several = value if isinstance(value, tuple) else (value,)
        for one in several:
            text = str(int(one)) if spec.is_boolean else str(one)
            words += [f"--{name}", shlex.quote(text)]
    return " ".join(words)
