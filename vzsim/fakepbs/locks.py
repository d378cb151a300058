"""Locks on groups and backups, within one server.

Owns who holds what; real servers hold them as files or flocks, with the same meaning towards
clients. Source: PBS formats, section 10.
"""

from __future__ import annotations


class Lock:
    """Held until `release`, which may be called twice."""

    def __init__(self, held: dict[str, int], path: str, amount: int) -> None:
        self._held = held
        self._path = path
        self._amount = amount

    def release(self) -> None:
        amount, self._amount = self._amount, 0
        rest = self._held.get(self._path, 0) - amount
        if rest:
            self._held[self._path] = rest
        else:
            self._held.pop(self._path, None)


# More readers than this nobody has; an exclusive lock counts as all of them.
_EXCLUSIVE = 1 << 20


class Locks:
    """All locks of a datastore, by path."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}

    def take_exclusive(self, path: str) -> Lock | None:
        """The lock, or None if anybody holds one there."""
        return self._take(path, _EXCLUSIVE) if path not in self._held else None

    def take_shared(self, path: str) -> Lock | None:
        """The lock, or None if somebody holds an exclusive one there."""
        return self._take(path, 1) if self._held.get(path, 0) < _EXCLUSIVE else None

    def held_paths(self) -> list[str]:
        """What is locked now, in order."""
        return sorted(self._held)

    def _take(self, path: str, amount: int) -> Lock:
        self._held[path] = self._held.get(path, 0) + amount
        return Lock(self._held, path, amount)
