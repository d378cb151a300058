"""Scenarios: the world at the start of a run, as frozen values read from TOML.

Schema by example (every key but `name` and `about` may be left out)::

    name = "snapshot-running"
    about = "one line: what this world is like"
    covers = [17, 20]              # numbers of the failure modes it is about
    vm_count = 1                   # > 1: a job over so many such VMs, from 100 on
    failing = {}                   # of these, by number: a part of the error of one that fails
    is_big = false                 # it takes part only where it is named
    state = "running"              # or paused, suspended, stopped, postmigrate
    disks = [1114112, 131584]      # bytes; scsi0, scsi1, ...
    missing_disks = ["scsi1"]      # in the configuration; QEMU was started without them
    empty_disks = ["scsi1"]        # QEMU has the drive and no medium in it
    efi_bytes = 0                  # > 0: an efidisk0 of that size, on a volume of 4 MiB
    tpm_bytes = 0                  # > 0: a tpmstate0 of that size
    tpm_is_attached = false        # an earlier run left its node in QEMU
    dialect = "pve"                # or upstream: a QEMU without the backup job
    no_shutdown = true             # QEMU outlives its guest's power-off
    has_agent = true
    is_frozen = false              # somebody froze the guest before and has not thawed it
    lock = ""                      # a lock another operation holds, e.g. "migrate"
    other_lock = "migrate"         # the lock that another operation takes by the fault other-lock
    global_lock_s = 0.0            # another job holds the node's lock for so long
    has_other_run = false          # another run on this VM is alive
    has_left_over_job = false      # a killed backup left its job in QEMU
    foreign_job = false            # another tool's backup job runs already
    busy_disk = ""                 # another kind of job has this disk, e.g. "scsi1"
    shutdown_s = 2.0               # how long the guest takes to power off; negative: never
    guest_writes_per_s = 200.0
    older_archives = 2
    protected_archives = 0         # so many of them, from the first on, are protected
    older_names = []               # more of them, by their time: "2026_01_02-03_04_06"
    target_bytes = 0               # > 0: so much fits on the target, older archives included
    fleecing_bytes = 0             # > 0: so much fits on the storage of the fleecing images
    earlier_runs = 0               # so many backups were made by the tool before, without faults
    is_encrypted = false           # the storage that is a backup server has a key
    pipe_bytes = 0                 # > 0: what the pipe into the archive holds
    faults = ""                    # a fault script that belongs to the scenario itself
    expect = "ok"                  # or killed, cancelled, or a part of the error;
                                   # holds for a run without other faults
    heals = true                   # the next run, in a healed world, succeeds
    says = []                      # what the tool's log must hold then, ...
    says_not = []                  # ... and what it must not
    [[command]]                    # what QEMU or the agent does differently, as in a machine's
    [[event]]                      # script; until the operator heals the world
    [options]                      # for the system under test: mode, compressor, fleecing, ...
    [compressor]                   # exit_status, dies_at_bytes, stall_at_bytes, stall_s, missing
    [agent]                        # quirks, as in a machine's script
    [backup]
    [budget]                       # seconds, before what faults add
    frozen_s = 10.0
    halted_s = 60.0
    write_s = 5.0
    run_s = 7200.0
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from typing import Any

from vzdump_qemu.errors import ConfigError
from vzsim.fakeqmp.schema import Dialect
from vzsim.fakeqmp.script import (
    AgentRules,
    BackupRules,
    CommandRule,
    EventRule,
    Script,
    build_script,
)
from vzsim.faults import FaultScript
from vzsim.world.store import CompressorRules

STATES = ("running", "paused", "suspended", "stopped", "postmigrate")
_SCRIPT_KEYS = ("command", "event", "agent", "backup")
_LIST_KEYS = (
    "covers", "disks", "missing_disks", "empty_disks", "older_names", "says", "says_not"
)  # fmt: skip
# A small disk is still being copied when others act.
_PACE_BYTES_PER_S = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a guest and an operator must bear, in seconds, before what faults add."""

    frozen_s: float = 10.0
    halted_s: float = 60.0
    write_s: float = 5.0
    run_s: float = 7200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One world; see the module's schema."""

    name: str
    about: str
    covers: tuple[int, ...] = ()
    vm_count: int = 1
    failing: Mapping[str, str] = field(default_factory=dict)
    is_big: bool = False
    state: str = "running"
    disks: tuple[int, ...] = (1114112, 131584)
    missing_disks: tuple[str, ...] = ()
    empty_disks: tuple[str, ...] = ()
    efi_bytes: int = 0
    tpm_bytes: int = 0
    tpm_is_attached: bool = False
    dialect: Dialect = Dialect.PVE
    no_shutdown: bool = True
    has_agent: bool = True
    is_frozen: bool = False
    lock: str = ""
    other_lock: str = "migrate"
    global_lock_s: float = 0.0
    has_other_run: bool = False
    has_left_over_job: bool = False
    foreign_job: bool = False
    busy_disk: str = ""
    shutdown_s: float = 2.0
    guest_writes_per_s: float = 200.0
    older_archives: int = 2
    protected_archives: int = 0
    older_names: tuple[str, ...] = ()
    target_bytes: int = 0
    fleecing_bytes: int = 0
    earlier_runs: int = 0
    is_encrypted: bool = False
    pipe_bytes: int = 0
    faults: FaultScript = field(default_factory=FaultScript)
    expect: str = "ok"
    heals: bool = True
    says: tuple[str, ...] = ()
    says_not: tuple[str, ...] = ()
    command: tuple[CommandRule, ...] = ()
    event: tuple[EventRule, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    compressor: CompressorRules = field(default_factory=CompressorRules)
    agent: AgentRules = field(default_factory=AgentRules)
    backup: BackupRules = field(default_factory=lambda: BackupRules(bytes_per_s=_PACE_BYTES_PER_S))
    budget: Budget = field(default_factory=Budget)

    @property
    def is_batch(self) -> bool:
        """A job over several VMs."""
        return self.vm_count > 1


def parse_scenario(text: str) -> Scenario:
    """Read one scenario. Raises ConfigError, one line."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"scenario: {error}") from error
    known = {entry.name for entry in fields(Scenario)}
    for key in table:
        if key not in known:
            raise ConfigError(f"scenario: unknown key '{key}'")
    values: dict[str, Any] = dict(table)
    for key in _LIST_KEYS:
        if key in values:
            values[key] = tuple(values[key])
    if values.get("state", "running") not in STATES:
        raise ConfigError(f"scenario: unknown state '{values['state']}'")
    dialect = values.get("dialect", Dialect.PVE.value)
    if dialect not in (Dialect.PVE.value, Dialect.UPSTREAM.value):
        raise ConfigError(f"scenario: unknown dialect '{dialect}'")
    script = _read_script({key: values.pop(key) for key in _SCRIPT_KEYS if key in values})
    try:
        return Scenario(
            **{
                **values,
                **{key: getattr(script, key) for key in _SCRIPT_KEYS},
                "dialect": Dialect(dialect),
                "faults": FaultScript.parse(values.get("faults", "")),
                "compressor": CompressorRules(**values.get("compressor", {})),
                "budget": Budget(**values.get("budget", {})),
            }
        )
    except TypeError as error:
        raise ConfigError(f"scenario: {error}") from error


def _read_script(tables: Mapping[str, Any]) -> Script:
    script = build_script(tables, "scenario")
    if script.backup.bytes_per_s == 0:
        backup = replace(script.backup, bytes_per_s=_PACE_BYTES_PER_S)
        script = replace(script, backup=backup)
    return script


def load_scenarios() -> dict[str, Scenario]:
    """All scenarios that come with the simulator, by name, in the order of their names."""
    folder = resources.files("vzsim") / "scenarios"
    entries = sorted(
        (entry for entry in folder.iterdir() if entry.name.endswith(".toml")),
        key=lambda entry: entry.name,
    )
    found = [parse_scenario(entry.read_text(encoding="utf-8")) for entry in entries]
    return {scenario.name: scenario for scenario in found}


def choose_scenarios(names: str) -> list[Scenario]:
    """The scenarios named in a comma-separated list; all but the big ones for an empty one.

    Raises: ConfigError naming one that does not exist.
    """
    known = load_scenarios()
    if not names:
        return [scenario for scenario in known.values() if not scenario.is_big]
    chosen = []
    for name in names.split(","):
        if name.strip() not in known:
            raise ConfigError(
                f"no scenario '{name.strip()}'", hint=f"there are: {', '.join(known)}"
            )
        chosen.append(known[name.strip()])
    return chosen
