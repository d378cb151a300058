"""``transaction``: several actions that happen at one instant, or not at all.

Source: recorded sessions ``stock-bitmaps``, ``stock-pull-*``, ``stock-push-grouped``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vzsim.fakeqmp.bitmaps import BITMAP_ACTIONS, BitmapCommands
from vzsim.fakeqmp.block_jobs import BlockJobs
from vzsim.fakeqmp.copy_job import CopyJob, JobGroup
from vzsim.fakeqmp.jobs import Jobs
from vzsim.fakeqmp.schema import CommandError

_SIMULATED = ("abort", "blockdev-backup", *BITMAP_ACTIONS)


class Transactions:
    """Carries out transactions on one machine."""

    def __init__(self, jobs: Jobs, block_jobs: BlockJobs, bitmaps: BitmapCommands) -> None:
        self._jobs = jobs
        self._block_jobs = block_jobs
        self._bitmaps = bitmaps

    def carry_out(self, given: Mapping[str, Any]) -> None:
        """All actions, or none. Raises: CommandError."""
        properties = given.get("properties", {})
        for action in given["actions"]:
            if action["type"] not in _SIMULATED:
                raise CommandError(f"The action {action['type']} is not simulated")
        grouped = JobGroup() if properties.get("completion-mode") == "grouped" else None
        undo: list[Callable[[], None]] = []
        copies: list[CopyJob] = []
        removals: list[Callable[[], None]] = []
        self._jobs.drain()
        try:
            for action in given["actions"]:
                if action["type"] == "block-dirty-bitmap-remove":
                    undo_mark, remove = self._bitmaps.begin_removal(action["data"])
                    undo.append(undo_mark)
                    removals.append(remove)
                    continue
                self._prepare(action["type"], action["data"], undo, copies, grouped)
        except CommandError:
            for step in reversed(undo):
                step()
            raise
        for remove in removals:
            remove()
        self._block_jobs.start(copies)

    def _prepare(
        self,
        kind: str,
        data: Mapping[str, Any],
        undo: list[Callable[[], None]],
        copies: list[CopyJob],
        group: JobGroup | None,
    ) -> None:
        if kind == "abort":
            raise CommandError("Transaction aborted using Abort action")
        if kind == "blockdev-backup":
            copy = self._block_jobs.prepare_backup(data, group or JobGroup())
            copies.append(copy)
            undo.append(copy.discard)
        else:
            undo.append(self._bitmaps.act(kind, data))
