"""Scenarios: the world at the start of a run, as frozen values read from TOML.

Schema by example (every key but `name` and `about` may be left out)::

    name = "snapshot-running"
    about = "one line: what this world is like"
    covers = [17, 20]              # numbers of the failure modes it is about
    state = "running"              # or "paused", "stopped"
    disks = [1114112, 131584]      # bytes; scsi0, scsi1, ...
    tpm_bytes = 0                  # > 0: a tpmstate0 of that size
    has_agent = true
    lock = ""                      # a lock another operation holds, e.g. "migrate"
    shutdown_s = 2.0               # how long the guest takes to power off; negative: never
    guest_writes_per_s = 200.0
    older_archives = 2
    foreign_job = false            # another tool's backup job runs already
        faults = ""                    # a fault script that belongs to the scenario itself
    expect = "ok"                  # or a part of the error; holds for a run without other faults
    [options]                      # for the system under test: mode, compressor, fleecing, ...
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
from dataclasses import dataclass, field, fields
from importlib import resources
from typing import Any

from vzdump_qemu.errors import ConfigError
from vzsim.fakeqmp.script import AgentPresence, AgentRules, BackupRules
from vzsim.faults import FaultScript


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
    state: str = "running"
    disks: tuple[int, ...] = (1114112, 131584)
    tpm_bytes: int = 0
    has_agent: bool = True
    lock: str = ""
    shutdown_s: float = 2.0
    guest_writes_per_s: float = 200.0
    older_archives: int = 2
    foreign_job: bool = False
    faults: FaultScript = field(default_factory=FaultScript)
    expect: str = "ok"
    options: Mapping[str, Any] = field(default_factory=dict)
    agent: AgentRules = field(default_factory=AgentRules)
    backup: BackupRules = field(default_factory=lambda: BackupRules(bytes_per_s=1 << 20))
    budget: Budget = field(default_factory=Budget)


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
    for key in ("covers", "disks"):
        if key in values:
            values[key] = tuple(values[key])
    if values.get("state", "running") not in ("running", "paused", "stopped"):
        raise ConfigError(f"scenario: unknown state '{values['state']}'")
    agent = dict(values.pop("agent", {}))
    if "state" in agent:
        agent["state"] = AgentPresence(agent["state"])
    if "disabled" in agent:
        agent["disabled"] = tuple(agent["disabled"])
    try:
        return Scenario(
            **{
                **values,
                "faults": FaultScript.parse(values.get("faults", "")),
                "agent": AgentRules(**agent),
                "backup": BackupRules(**{"bytes_per_s": 1 << 20, **values.get("backup", {})}),
                "budget": Budget(**values.get("budget", {})),
            }
        )
    except TypeError as error:
        raise ConfigError(f"scenario: {error}") from error


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
    """The scenarios named in a comma-separated list; all for an empty one.

    Raises: ConfigError naming one that does not exist.
    """
    known = load_scenarios()
    if not names:
        return list(known.values())
    chosen = []
    for name in names.split(","):
        if name.strip() not in known:
            raise ConfigError(
                f"no scenario '{name.strip()}'", hint=f"there are: {', '.join(known)}"
            )
        chosen.append(known[name.strip()])
    return chosen
