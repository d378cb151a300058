"""Figures of the status loop: when a line is due, and what it says; pure.

Rendering is left to the renderers. Source: host behaviour, section 1.10, "Progress loop".
"""

from __future__ import annotations

from vzdump_qemu.events import ProgressLine
from vzdump_qemu.ports import JobProgress, JobStatus

LINE_PAUSE_S = 2.0


def percent_of(amount: int, target: int) -> int:
    """Floor of the share; a target of 0 is reached, and none is more than reached."""
    return min(100, amount * 100 // target) if target > 0 else 100


class ProgressTracker:
    """Decides from successive looks at a job which of them make a line."""

    def __init__(self) -> None:
        self._target_bytes = 0
        self._last_percent = -1
        self._line_s = 0.0
        self._line: JobProgress | None = None

    def take(self, progress: JobProgress, *, elapsed_s: float) -> ProgressLine | None:
        """One look; the line that is due now, or None.

        A line is due when the percentage changed and more than 2 s passed since the last one;
        an ended job's last look always is, unless 100 % was told already.
        """
        target_bytes = progress.total_bytes
        if 0 <= progress.dirty_bytes < progress.total_bytes:
            target_bytes = progress.dirty_bytes
        percent = percent_of(progress.transferred_bytes, target_bytes)
        if progress.status is JobStatus.ACTIVE:
            due = percent != self._last_percent and elapsed_s - self._line_s > LINE_PAUSE_S
        else:
            due = self._last_percent != 100
        if not due:
            return None
        line = self._make_line(progress, percent, target_bytes, elapsed_s)
        self._last_percent, self._line_s, self._line = percent, elapsed_s, progress
        return line

    def _make_line(
        self, progress: JobProgress, percent: int, target_bytes: int, elapsed_s: float
    ) -> ProgressLine:
        before = self._line
        read = progress.transferred_bytes - (before.transferred_bytes if before else 0)
        if progress.reused_bytes:
            # What need not be looked at counts as reused from the start, and took no time.
            unread = progress.total_bytes - target_bytes
            saved = progress.reused_bytes - (before.reused_bytes if before else unread)
        else:
            saved = progress.zero_bytes - (before.zero_bytes if before else 0)
        # vzdump counts whole seconds, the first one too: what was skipped at once, as known to
        # the server, would make any rate otherwise.
        length_s = max(elapsed_s - self._line_s, 1.0)
        return ProgressLine(
            percent=percent,
            done_bytes=progress.transferred_bytes,
            target_bytes=target_bytes,
            zero_bytes=progress.zero_bytes,
            elapsed_s=elapsed_s,
            read_bytes_per_s=max(0.0, read / length_s),
            write_bytes_per_s=max(0.0, (read - saved) / length_s),
        )
