"""Who has a disk image open for what: QEMU's image locks, without the files' byte ranges.

One table per host; a holder says whether it writes and whether it bears other writers.
Source: recorded sessions ``qsd-locks``, ``stock-pull-errors``.
"""

from __future__ import annotations

from dataclasses import dataclass

from vzsim.fakeqmp.schema import CommandError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hold:
    writes: bool
    alone: bool


class ImageLocks:
    """Locks of all images by path."""

    def __init__(self) -> None:
        self._holds: dict[str, dict[object, _Hold]] = {}

    def take(self, path: str, holder: object, *, writes: bool, alone: bool) -> None:
        """Take or change a hold.

        Args:
            writes: the holder may write.
            alone: the holder bears no other writer.

        Raises: CommandError if another holder forbids it.
        """
        holds = self._holds.setdefault(path, {})
        others = [hold for each, hold in holds.items() if each is not holder]
        if writes and any(hold.alone for hold in others):
            raise CommandError('Failed to get "write" lock')
        if alone and any(hold.writes for hold in others):
            raise CommandError('Failed to get shared "write" lock')
        holds[holder] = _Hold(writes=writes, alone=alone)

    def release(self, path: str, holder: object) -> None:
        """Give up a hold, if there is one."""
        self._holds.get(path, {}).pop(holder, None)
