"""Points in time for another program: ``backup-access-setup`` and ``-teardown``.

Owns the views and the bitmaps of external backup tools. Source: PVE interface, section 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vzdump_qemu.units import MIB, ceil_div
from vzsim.fakeqmp.backup_devices import ChosenDevice, find_fleecing
from vzsim.fakeqmp.backup_state import BackupFigures
from vzsim.fakeqmp.copy_before_write import CopyBeforeWrite
from vzsim.fakeqmp.nodes import Node
from vzsim.fakeqmp.schema import CommandError

if TYPE_CHECKING:
    from vzsim.fakeqmp.machine import Machine

_BITMAP_GRANULARITY_BYTES = 4 * MIB


class BackupAccess:
    """Access of other programs to one machine's disks.

    Attributes:
        owner: who has access now; empty for nobody.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.owner = ""
        # Dirty pieces per owner and device; writes since the setup are kept apart.
        self._bitmaps: dict[tuple[str, str], set[int]] = {}
        self._writes: dict[str, set[int]] = {}
        self._views: list[tuple[str, Node, CopyBeforeWrite]] = []

    def set_up(self, arguments: Mapping[str, Any]) -> tuple[BackupFigures, list[dict[str, Any]]]:
        """Give access; the figures that ``query-backup`` shows, and the reply.

        Raises: CommandError.
        """
        machine = self._machine
        if not arguments["devices"]:
            machine.die("SIGABRT")
            raise CommandError("the process died")
        chosen = []
        for entry in arguments["devices"]:
            name = str(entry["device"])
            node = machine.block.find(name)
            below = find_fleecing(machine, name, node)
            chosen.append((ChosenDevice(name=name, node=node, fleecing=below), entry))
        total_bytes = sum(each.node.size_bytes for each, _ in chosen)
        figures = BackupFigures(
            uuid="",
            target=None,
            start_s=int(machine.timebase.now_s()),
            total_bytes=total_bytes,
            dirty_bytes=total_bytes,
        )
        self.owner = str(arguments["target-id"])
        self._writes = {}
        replies = [self._reply(each, entry, figures) for each, entry in chosen]
        figures.dirty_bytes = sum(info["dirty"] for info in figures.bitmap_infos)
        figures.reused_bytes = total_bytes - figures.dirty_bytes
        return figures, replies

    def note_write(self, device_id: str, offset_bytes: int, length_bytes: int) -> None:
        """A guest write, for the bitmaps."""
        if not self._bitmaps:
            return
        first = offset_bytes // _BITMAP_GRANULARITY_BYTES
        end = ceil_div(offset_bytes + length_bytes, _BITMAP_GRANULARITY_BYTES)
        for (owner, name), dirty in self._bitmaps.items():
            if name != device_id:
                continue
            if owner == self.owner:
                self._writes.setdefault(name, set()).update(range(first, end))
            dirty.update(range(first, end))

    def remove(self, arguments: Mapping[str, Any]) -> bool:
        """End the access; whether there was one. Raises: CommandError."""
        owner = str(arguments["target-id"])
        if not self.owner:
            return False
        if owner != self.owner:
            raise CommandError(
                f"cannot teardown backup access - got target {owner} instead of {self.owner}"
            )
        if arguments["success"]:
            for each, name in list(self._bitmaps):
                if each == owner:
                    self._bitmaps[each, name] = self._writes.get(name, set())
        for name, node, guard in self._views:
            self._machine.block.remove_kept_view(name, node, guard)
        self._views.clear()
        self.owner = ""
        return True

    def _reply(
        self, chosen: ChosenDevice, entry: Mapping[str, Any], figures: BackupFigures
    ) -> dict[str, Any]:
        size_bytes = chosen.node.size_bytes
        key = (self.owner, chosen.name)
        known = self._bitmaps.get(key)
        mode, dirty_bytes = entry.get("bitmap-mode", "none"), size_bytes
        reply: dict[str, Any] = {
            "device": chosen.name,
            "node-name": self._keep_view(chosen),
            "size": size_bytes,
        }
        if mode == "none":
            action = "not-used" if known is None else "not-used-removed"
            self._bitmaps.pop(key, None)
        else:
            action = "new"
            if mode == "use":
                action = "missing-recreated" if known is None else "used"
            if action == "used" and known is not None:
                dirty_bytes = min(len(known) * _BITMAP_GRANULARITY_BYTES, size_bytes)
            count = ceil_div(size_bytes, _BITMAP_GRANULARITY_BYTES)
            if action != "used":
                self._bitmaps[key] = set(range(count))
            reply |= {
                "bitmap-action": action,
                "bitmap-node-name": chosen.node.name,
                "bitmap-name": self.owner,
            }
        figures.bitmap_infos.append(
            {"drive": chosen.name, "action": action, "size": size_bytes, "dirty": dirty_bytes}
        )
        return reply

    def _keep_view(self, chosen: ChosenDevice) -> str:
        """A node that shows the disk as it is now, kept by the fleecing image."""
        block = self._machine.block
        name = block.make_up_name()
        fleecing = chosen.fleecing
        if chosen.node.disk is not None and fleecing is not None and fleecing.disk is not None:
            guard = CopyBeforeWrite(chosen.node.disk, fleecing.disk, breaks_guest_write=False)
            block.add_kept_view(name, chosen.node, guard)
            self._views.append((name, chosen.node, guard))
        return name
