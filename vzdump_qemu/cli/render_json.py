"""Events as JSON lines: ``{"event": "FreezeIssued", "time": "…Z", …fields}``.

Owns the mapping of event fields to JSON; each event is one line, none is left out. Times of day
are UTC in ISO 8601 with milliseconds.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from datetime import UTC, datetime
from typing import Any

from vzdump_qemu.events import Event


def render_json_line(event: Event, *, wall_s: float, vmid: int | None = None) -> str:
    """Render one event.

    Args:
        wall_s: when it was heard, seconds since the epoch.
        vmid: whose run said it; None for the job.
    """
    moment = datetime.fromtimestamp(wall_s, UTC)
    time = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    fields = {name: _plain(value) for name, value in _fields(event).items()}
    whose = {} if vmid is None else {"vmid": vmid}
    named = {"event": type(event).__name__, "time": time, **whose, **fields}
    return json.dumps(named, ensure_ascii=False)


def _fields(value: Any) -> dict[str, Any]:
    return {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)}


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(inner) for name, inner in _fields(value).items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return value
