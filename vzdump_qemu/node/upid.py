"""The name under which the platform knows a running task.

Owns its text; tools that stop a running job read it from the pid file beside the global lock.
Source: host behaviour, sections 1.2, 1.4 and 1.5.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

_START_TIME_FIELD_INDEX = 19
_UPID = re.compile(
    r"UPID:[^:\s]+:([0-9A-Fa-f]{8}):([0-9A-Fa-f]{8,9}):([0-9A-Fa-f]{8,9}):[^:\s]+:[^:\s]*:[^:\s]+:.*"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upid:
    """What the name of a task tells of its process.

    Attributes:
        started_wall_s: when the task began.
    """

    process_id: int
    start_ticks: int
    started_wall_s: int


def make_upid(
    node_name: str, process_id: int, *, kind: str, task_id: str = "", user: str = "root@pam"
) -> str:
    """``UPID:node:pid:pstart:starttime:type:id:user:``, numbers in upper-case hexadecimal."""
    started = read_start_ticks(process_id)
    now_s = int(time.time())
    return f"UPID:{node_name}:{process_id:08X}:{started:08X}:{now_s:08X}:{kind}:{task_id}:{user}:"


def parse_upid(text: str) -> Upid | None:
    """What such a name says; None for anything else."""
    found = _UPID.fullmatch(text)
    if found is None:
        return None
    process_id, start_ticks, started_s = (int(part, 16) for part in found.groups())
    return Upid(process_id=process_id, start_ticks=start_ticks, started_wall_s=started_s)


def read_start_ticks(process_id: int, *, proc_path: str = "/proc") -> int:
    """When the process started, in clock ticks since boot; 0 if it cannot be told."""
    try:
        with open(f"{proc_path}/{process_id}/stat", "rb") as file:
            # The program's name, in parentheses, may itself hold blanks.
            fields = file.read(4096).rpartition(b")")[2].split()
        return int(fields[_START_TIME_FIELD_INDEX])
    except (OSError, IndexError, ValueError):
        return 0
