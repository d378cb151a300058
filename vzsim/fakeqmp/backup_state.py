"""What ``query-backup`` says: the figures of the latest backup of a machine.

They persist until the next backup. A run changes them through here; scripted lies are added only
when they are shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vzsim.fakeqmp.script import BackupRules


@dataclass(slots=True, kw_only=True)
class BackupFigures:
    """Figures of one backup; times in whole seconds since the epoch."""

    uuid: str
    target: str | None
    start_s: int
    total_bytes: int
    dirty_bytes: int
    reused_bytes: int = 0
    transferred_bytes: int = 0
    zero_bytes: int = 0
    end_s: int | None = None
    error_text: str = ""
    finishing: bool = False
    bitmap_infos: list[dict[str, Any]] = field(default_factory=list)

    def record_error(self, text: str) -> None:
        """Keep the first error."""
        if not self.error_text:
            self.error_text = text

    @property
    def status(self) -> str:
        """``active`` as long as there is no end time, even if an error is already recorded."""
        if self.end_s is None:
            return "active"
        return "error" if self.error_text else "done"


def describe(figures: BackupFigures | None, rules: BackupRules) -> dict[str, Any]:
    """Reply of ``query-backup``."""
    if figures is None:
        return {"finishing": False}
    status = figures.status
    error_text = figures.error_text
    if status != "active" and (rules.status or rules.errmsg):
        status = rules.status or "error"
        error_text = rules.errmsg or error_text
    reply: dict[str, Any] = {
        "total": figures.total_bytes,
        "zero-bytes": figures.zero_bytes,
        "finishing": figures.finishing,
        "uuid": rules.uuid or figures.uuid,
        "status": status,
        "dirty": figures.dirty_bytes,
        "reused": figures.reused_bytes,
        "transferred": figures.transferred_bytes + rules.transferred_off_by,
        "start-time": figures.start_s,
    }
    if figures.target is not None:
        reply["backup-file"] = figures.target
    if figures.end_s is not None:
        reply["end-time"] = figures.end_s
    if error_text and status != "active":
        reply["errmsg"] = error_text
    return reply
