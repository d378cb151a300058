"""What a backup run writes to: pieces of disks go in, and the target may hold it up.

Owns the port between the run and its two kinds of target, `vma_output` and `pbs_output`.
"""

from __future__ import annotations

from typing import Protocol

from vzsim.fakeqmp.disks import Disk


class BackupOutput(Protocol):
    """One backup's target.

    It calls back (``on_drained``) after a wait, when pieces can be added again or the output
    failed; and once after `finish`.
    """

    @property
    def piece_bytes(self) -> int:
        """What is saved as one: a cluster or a chunk."""
        ...

    @property
    def error_text(self) -> str:
        """The first failure; empty as long as all is well."""
        ...

    @property
    def is_blocked(self) -> bool:
        """Nothing can be added now."""
        ...

    @property
    def is_settled(self) -> bool | None:
        """Whether the target has confirmed all that was added; None where it never does."""
        ...

    @property
    def free_piece_count(self) -> int:
        """How many pieces can be added at once, when it is not blocked."""
        ...

    def take(self, dev_number: int, first_index: int, count: int, source: Disk) -> int:
        """Add pieces (the last of a disk may be short); the bytes of zeroes among them.

        Raises: OSError if the disk cannot be read.
        """
        ...

    def finish(self) -> None:
        """The jobs have ended; bring it to its end, good or bad."""

    def drop(self) -> None:
        """The backup was cancelled while this was blocked."""

    def close(self) -> None:
        """Let go of the target. Idempotent."""
