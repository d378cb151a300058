"""Objects that ``object-add`` and ``-object`` make: throttle groups, no others.

Owns their names and who uses them; limits have no effect, the simulated disks are paced by the
script. Source: asked of QEMU 7.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vzsim.fakeqmp.schema import CommandError

_SIMULATED = "throttle-group"


class UserObjects:
    """Objects of one process by id, each with the nodes that use it."""

    def __init__(self) -> None:
        self._users: dict[str, set[str]] = {}

    def add(self, given: Mapping[str, Any]) -> None:
        """``object-add``. Raises: CommandError."""
        object_id, kind = str(given["id"]), given["qom-type"]
        if kind != _SIMULATED:
            raise CommandError(f"Objects of type {kind} are not simulated")
        if object_id in self._users:
            raise CommandError(
                f"attempt to add duplicate property '{object_id}' to object (type 'container')"
            )
        self._users[object_id] = set()

    def remove(self, given: Mapping[str, Any]) -> None:
        """``object-del``. Raises: CommandError."""
        object_id = str(given["id"])
        if object_id not in self._users:
            raise CommandError(f"object '{object_id}' not found")
        if self._users[object_id]:
            raise CommandError(f"object '{object_id}' is in use, can not be deleted")
        del self._users[object_id]

    def require_throttle_group(self, group: str) -> None:
        """Raises: CommandError if there is no such group."""
        if group not in self._users:
            raise CommandError(f"Throttle group '{group}' does not exist")

    def join_throttle_group(self, group: str, node_name: str) -> None:
        """A throttle node uses the group from now on."""
        self._users[group].add(node_name)

    def leave(self, node_name: str) -> None:
        """A node is gone."""
        for users in self._users.values():
            users.discard(node_name)
