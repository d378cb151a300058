"""What a backup server's own rule does with the backups of VMs, with a reason for each; pure.

The server decides: it counts periods in its own zone and knows which backups are being made. Owns
only why, by the same algorithm in this machine's zone. Source: host behaviour, sections 2.7 and
5.8.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from vzdump_qemu.plan.retention import (
    NOT_COVERED,
    PROTECTED,
    LocalTime,
    RetentionDecision,
    RetentionEntry,
    decide_retention,
)
from vzdump_qemu.plan.retention_rule import RetentionRule

UNFINISHED = "not finished"
BY_SERVER = "kept by the server"
NO_VM = "of no VM's id"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerEntry:
    """One backup as its server lists it.

    Attributes:
        name: its path, unique in a namespace.
        vmid: None for a group whose id is no VM's.
        time_s: when it began, in seconds since the epoch.
        is_finished: it is final; else it is being made, or was given up.
    """

    name: str
    vmid: int | None
    time_s: int
    is_finished: bool = True
    is_protected: bool = False


def decide_at_server(
    entries: Sequence[ServerEntry],
    rule: RetentionRule,
    *,
    going: Collection[str],
    local_time: LocalTime,
) -> tuple[RetentionDecision, ...]:
    """Tell what the server decided, and why.

    Args:
        going: names of what the server would remove.
        local_time: the zone of this machine.
    Returns:
        A decision for each entry: by VM, newest first, those of no VM last.
    """
    # What is not final takes part in no period.
    mine = {
        decision.name: decision
        for decision in decide_retention(
            [_entry(each) for each in entries if each.is_finished], rule, local_time=local_time
        )
    }
    order = decide_retention(map(_entry, entries), RetentionRule(), local_time=local_time)
    by_name = {entry.name: entry for entry in entries}
    return tuple(
        _tell(mine.get(decision.name, decision), by_name[decision.name], going)
        for decision in order
    )


def _entry(entry: ServerEntry) -> RetentionEntry:
    return RetentionEntry(
        name=entry.name, vmid=entry.vmid, time_s=entry.time_s, is_protected=entry.is_protected
    )


def _tell(
    decision: RetentionDecision, entry: ServerEntry, going: Collection[str]
) -> RetentionDecision:
    keep = entry.name not in going or entry.is_protected
    if entry.is_protected:
        reason = PROTECTED
    elif entry.vmid is None:
        reason = NO_VM
    elif not entry.is_finished:
        reason = UNFINISHED
    elif keep == decision.keep:
        reason = decision.reason
    else:
        # A period of the server's zone ends at another hour.
        reason = BY_SERVER if keep else NOT_COVERED
    return replace(decision, keep=keep, reason=reason)
