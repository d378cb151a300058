"""Descriptor sets (``add-fd``): they belong to the process, not to one monitor."""

from __future__ import annotations

from typing import Any

from vzsim.fakeqmp.outside import Host
from vzsim.fakeqmp.schema import CommandError


class FdSets:
    """The descriptor sets of one machine."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._sets: dict[int, dict[int, str | None]] = {}

    def add(self, fd: int, *, set_id: int | None, opaque: str | None) -> dict[str, int]:
        """``add-fd``; a new set gets the lowest free number."""
        if set_id is None:
            set_id = 0
            while set_id in self._sets:
                set_id += 1
        self._sets.setdefault(set_id, {})[fd] = opaque
        return {"fdset-id": set_id, "fd": fd}

    def remove(self, set_id: int, fd: int | None) -> None:
        """``remove-fd``. Raises: CommandError."""
        members = self._sets.get(set_id)
        if members is None or (fd is not None and fd not in members):
            suffix = f", fd:{fd}" if fd is not None else ""
            raise CommandError(f"File descriptor named 'fdset-id:{set_id}{suffix}' not found")
        for each in [fd] if fd is not None else list(members):
            del members[each]
            self._host.close_fd(each)
        if not members:
            del self._sets[set_id]

    def any_fd(self, number: str) -> int | None:
        """A descriptor of the set of that number."""
        members = self._sets.get(int(number)) if number.isdecimal() else None
        return next(iter(members)) if members else None

    def describe(self) -> list[dict[str, Any]]:
        """Reply of ``query-fdsets``."""
        return [
            {
                "fdset-id": set_id,
                "fds": [
                    {"fd": fd} if opaque is None else {"fd": fd, "opaque": opaque}
                    for fd, opaque in members.items()
                ],
            }
            for set_id, members in self._sets.items()
        ]

    def close(self) -> None:
        """Close all."""
        for members in self._sets.values():
            for fd in members:
                self._host.close_fd(fd)
        self._sets.clear()
