"""The NBD server of one machine and its exports, as the block export commands see them.

Owns names, users and removal. Speaking NBD is left to `nbd_session` and `nbd_server`.
Source: recorded sessions ``stock-pull-errors``, ``stock-pull-nbd-stop-with-client``, ``qsd-*``.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vzsim.fakeqmp.bitmaps import Bitmap
from vzsim.fakeqmp.block import BlockLayer
from vzsim.fakeqmp.disks import Disk
from vzsim.fakeqmp.jobs import Emit, Jobs
from vzsim.fakeqmp.nodes import Node
from vzsim.fakeqmp.outside import Timebase
from vzsim.fakeqmp.schema import CommandError
from vzsim.fakeqmp.storage_host import NbdListener, StorageHost


@dataclass(slots=True, kw_only=True, eq=False)
class Export:
    """One export."""

    export_id: str
    name: str
    node: Node
    writable: bool
    bitmaps: Sequence[Bitmap] = field(default=())
    client_count: int = 0

    @property
    def disk(self) -> Disk:
        """What clients read. Raises: OSError if there is no medium."""
        if self.node.disk is None:
            raise OSError(errno.ENOMEDIUM, os.strerror(errno.ENOMEDIUM))
        return self.node.disk

    def client_came(self) -> None:
        """A client uses it."""
        self.client_count += 1

    def client_left(self) -> None:
        """A client is gone."""
        self.client_count -= 1

    def write(self, offset_bytes: int, data: bytes) -> None:
        """Write as a client. Raises: OSError."""
        if not self.writable:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self.node.write(offset_bytes, data)


class Exports:
    """All exports of one machine."""

    def __init__(
        self, *, block: BlockLayer, jobs: Jobs, emit: Emit, storage: StorageHost, time: Timebase
    ) -> None:
        self._block = block
        self._jobs = jobs
        self._emit = emit
        self._storage = storage
        self._time = time
        self._listener: NbdListener | None = None
        self._exports: list[Export] = []

    # -- the server's view ---------------------------------------------------------------------

    def find_export(self, name: str) -> Export | None:
        """The export that clients know by this name."""
        return next((export for export in self._exports if export.name == name), None)

    def export_names(self) -> list[str]:
        """Names that clients may choose from."""
        return [export.name for export in self._exports]

    # -- commands ------------------------------------------------------------------------------

    def start_server(self, given: Mapping[str, Any]) -> None:
        """``nbd-server-start``. Raises: CommandError."""
        if self._listener is not None:
            raise CommandError("NBD server already running")
        address = given["addr"]
        data = address.get("data", address)
        if address.get("type") != "unix" or "path" not in data:
            raise CommandError("NBD servers on other than UNIX sockets are not simulated")
        try:
            self._listener = self._storage.listen_nbd(str(data["path"]), self)
        except OSError as error:
            raise CommandError(
                f"Failed to bind socket to {data['path']}: {error.strerror}"
            ) from error

    def stop_server(self) -> None:
        """``nbd-server-stop``: with all exports and their clients. Raises: CommandError."""
        if self._listener is None:
            raise CommandError("NBD server not running")
        for export in list(self._exports):
            if export.client_count:
                self._jobs.drain_nodes({export.node.name})
            self._remove(export)
        self._listener.close()
        self._listener = None

    def close(self) -> None:
        """The process ends: exports go, each with its event."""
        if self._listener is not None:
            self.stop_server()

    def add(self, given: Mapping[str, Any]) -> None:
        """``block-export-add``. Raises: CommandError."""
        export_id = str(given["id"])
        if given["type"] != "nbd":
            raise CommandError(f"Exports of type {given['type']} are not simulated")
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", export_id):
            raise CommandError("Invalid block export id")
        if any(export.export_id == export_id for export in self._exports):
            raise CommandError(f"Block export id '{export_id}' is already in use")
        node = self._block.node(given["node-name"])
        if node is None:
            raise CommandError(f"Cannot find device='' nor node-name='{given['node-name']}'")
        writable = bool(given.get("writable", False))
        if writable and node.read_only:
            raise CommandError("Cannot export read-only node as writable")
        if writable:
            self._block.begin_writing(node)
        try:
            export = self._make(export_id, node, given, writable=writable)
        except CommandError:
            if writable:
                self._block.end_writing(node)
            self._jobs.drain_nodes({node.name})
            raise
        for bitmap in export.bitmaps:
            bitmap.busy = True
        node.roots.add(f"export {export_id}")
        self._exports.append(export)

    def add_by_device(self, given: Mapping[str, Any]) -> None:
        """``nbd-server-add``: export and id bear one name. Raises: CommandError."""
        name = str(given.get("name", given["device"]))
        node = self._block.look_up(given["device"])
        options: dict[str, Any] = {"type": "nbd", "id": name, "node-name": node.name, "name": name}
        if given.get("writable", False) and not node.read_only:
            options |= {"writable": True}
        if "bitmap" in given:
            options |= {"bitmaps": [given["bitmap"]]}
        self.add(options)

    def delete_by_name(self, given: Mapping[str, Any]) -> None:
        """``nbd-server-remove``. Raises: CommandError."""
        self.delete({"id": given["name"], "mode": given.get("mode", "safe")})

    def _make(
        self, export_id: str, node: Node, given: Mapping[str, Any], *, writable: bool
    ) -> Export:
        if self._listener is None:
            raise CommandError("NBD server not running")
        name = str(given.get("name", node.name))
        if self.find_export(name) is not None:
            raise CommandError(f"NBD server already has export named '{name}'")
        bitmaps = []
        for wanted in given.get("bitmaps", []):
            found = self._find_bitmap(node, wanted)
            if found is None:
                raise CommandError(f"Bitmap '{wanted}' is not found")
            # One named with its node is not asked (7.2.22).
            is_asked = not isinstance(wanted, Mapping)
            if is_asked and found.recording and not writable and not node.read_only:
                raise CommandError(
                    f"Enabled bitmap '{found.name}' incompatible with readonly export"
                )
            bitmaps.append(found)
        return Export(export_id=export_id, name=name, node=node, writable=writable, bitmaps=bitmaps)

    def _find_bitmap(self, node: Node, wanted: object) -> Bitmap | None:
        if isinstance(wanted, Mapping):
            other = self._block.node(str(wanted["node"]))
            return other.bitmaps.get(str(wanted["name"])) if other else None
        at: Node | None = node
        while at is not None and str(wanted) not in at.bitmaps:
            at = at.backing or at.below
        return at.bitmaps[str(wanted)] if at is not None else None

    def delete(self, given: Mapping[str, Any]) -> None:
        """``block-export-del``. Raises: CommandError."""
        export_id = given["id"]
        export = next((each for each in self._exports if each.export_id == export_id), None)
        if export is None:
            raise CommandError(f"Export '{export_id}' is not found")
        if export.client_count and given.get("mode", "safe") == "safe":
            raise CommandError(f"export '{export_id}' still in use")
        if export.client_count:
            # Clients are let go first; the export is gone a little after the reply.
            self._time.call_later(0.0, lambda: self._drain_and_remove(export))
        else:
            self._drain_and_remove(export)

    def _drain_and_remove(self, export: Export) -> None:
        if export in self._exports:
            self._jobs.drain_nodes({export.node.name})
            self._remove(export)

    def _remove(self, export: Export) -> None:
        self._exports.remove(export)
        if self._listener is not None:
            self._listener.drop_clients(export.name)
        for bitmap in export.bitmaps:
            bitmap.busy = False
        export.node.roots.discard(f"export {export.export_id}")
        if export.writable:
            self._block.end_writing(export.node)
        self._emit("BLOCK_EXPORT_DELETED", {"id": export.export_id})

    def describe(self) -> list[dict[str, Any]]:
        """Reply of ``query-block-exports``: the newest first."""
        return [
            {
                "node-name": export.node.name,
                "shutting-down": False,
                "type": "nbd",
                "id": export.export_id,
            }
            for export in reversed(self._exports)
        ]
