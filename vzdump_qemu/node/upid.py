"""The name under which the platform knows a running task.

Owns its text; tools that stop a running job read it from the pid file beside the global lock.
Source: host behaviour, sections 1.2, 1.4 and 1.5.
"""

from __future__ import annotations

import time

_START_TIME_FIELD_INDEX = 19


def make_upid(node_name: str, process_id: int, *, kind: str, user: str = "root@pam") -> str:
    """``UPID:node:pid:pstart:starttime:type:id:user:``, numbers in upper-case hexadecimal."""
    started = read_start_ticks(process_id)
    now_s = int(time.time())
    return f"UPID:{node_name}:{process_id:08X}:{started:08X}:{now_s:08X}:{kind}::{user}:"


def read_start_ticks(process_id: int, *, proc_path: str = "/proc") -> int:
    """When the process started, in clock ticks since boot; 0 if it cannot be told."""
    try:
        with open(f"{proc_path}/{process_id}/stat", "rb") as file:
            # The program's name, in parentheses, may itself hold blanks.
            fields = file.read(4096).rpartition(b")")[2].split()
        return int(fields[_START_TIME_FIELD_INDEX])
    except (OSError, IndexError, ValueError):
        return 0
