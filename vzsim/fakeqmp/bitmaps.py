"""Dirty bitmaps of block nodes: the bitmap itself and the commands on it.

Owns names, granularity, recording, merging and the replies; which writes happen is told by the
block layer. Source: recorded sessions ``stock-bitmaps``, ``stock-bitmap-pull``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vzdump_qemu.units import KIB, ceil_div
from vzsim.fakeqmp.schema import CommandError

if TYPE_CHECKING:
    from vzsim.fakeqmp.nodes import Node

GRANULARITY_BYTES = 64 * KIB
_GRANULARITY_MIN_BYTES = 512
_WORD_BITS = 64

BITMAP_ACTIONS = tuple(
    f"block-dirty-bitmap-{verb}"
    for verb in ("add", "remove", "clear", "enable", "disable", "merge")
)

FindNode = Callable[[str], "Node"]


@dataclass(slots=True, kw_only=True)
class Bitmap:
    """One dirty bitmap; ``dirty`` holds the indices of dirty pieces of ``granularity_bytes``."""

    name: str
    size_bytes: int
    granularity_bytes: int = GRANULARITY_BYTES
    recording: bool = True
    persistent: bool = False
    busy: bool = False
    inconsistent: bool = False
    dirty: set[int] = field(default_factory=set)

    def note(self, offset_bytes: int, length_bytes: int) -> None:
        """A write: mark what it touches, if the bitmap records."""
        if self.recording:
            self.dirty.update(_pieces(offset_bytes, length_bytes, self.granularity_bytes))

    def merge(self, other: Bitmap) -> None:
        """Mark what the other has marked, whatever its granularity."""
        for index in other.dirty:
            offset = index * other.granularity_bytes
            length = min(other.granularity_bytes, self.size_bytes - offset)
            self.dirty.update(_pieces(offset, length, self.granularity_bytes))

    def resize(self, size_bytes: int) -> None:
        """The node has another size; what is cut off is forgotten, what is added is clean."""
        self.size_bytes = size_bytes
        end = ceil_div(size_bytes, self.granularity_bytes)
        self.dirty = {index for index in self.dirty if index < end}

    def is_dirty_at(self, offset_bytes: int) -> bool:
        """Whether the piece there is marked."""
        return offset_bytes // self.granularity_bytes in self.dirty

    def digest(self) -> str:
        """SHA-256 of the bits in little-endian words of 64, as QEMU computes it."""
        bit_count = ceil_div(self.size_bytes, self.granularity_bytes)
        bits = sum(1 << index for index in self.dirty)
        raw = bits.to_bytes(ceil_div(bit_count, _WORD_BITS) * 8, "little")
        return hashlib.sha256(raw).hexdigest()

    def describe(self) -> dict[str, Any]:
        """As ``query-block`` shows it; a job's own bitmap has no name."""
        reply: dict[str, Any] = {"name": self.name} if self.name else {}
        if self.inconsistent:
            reply["inconsistent"] = True
        return reply | {
            "recording": self.recording,
            "persistent": self.persistent,
            "busy": self.busy,
            "granularity": self.granularity_bytes,
            "count": len(self.dirty) * self.granularity_bytes,
        }


def _pieces(offset_bytes: int, length_bytes: int, granularity_bytes: int) -> range:
    end = ceil_div(offset_bytes + length_bytes, granularity_bytes)
    return range(offset_bytes // granularity_bytes, end)


def find_bitmap(node: Node, name: str) -> Bitmap:
    """The bitmap of that name. Raises: CommandError."""
    bitmap = node.bitmaps.get(name)
    if bitmap is None:
        raise CommandError(f"Dirty bitmap '{name}' not found")
    return bitmap


def _free_bitmap(node: Node, name: str) -> Bitmap:
    bitmap = find_bitmap(node, name)
    if bitmap.busy:
        raise CommandError(
            f"Bitmap '{name}' is currently in use by another operation and cannot be used"
        )
    if bitmap.inconsistent:
        raise CommandError(f"Bitmap '{name}' is inconsistent and cannot be used")
    return bitmap


class BitmapCommands:
    """``block-dirty-bitmap-*``; each returns how to undo it."""

    def __init__(self, find_node: FindNode) -> None:
        self._find_node = find_node

    def act(self, kind: str, given: Mapping[str, Any]) -> Callable[[], None]:
        """Carry out one command by its name. Raises: CommandError."""
        node = self._find_node(given["node"])
        match kind.removeprefix("block-dirty-bitmap-"):
            case "add":
                return self._add(node, given)
            case "remove":
                return self._remove(node, given["name"])
            case "clear":
                return self._clear(node, given["name"])
            case "enable":
                return self._record(node, given["name"], recording=True)
            case "disable":
                return self._record(node, given["name"], recording=False)
            case _:
                return self._merge(node, given)

    def begin_removal(
        self, given: Mapping[str, Any]
    ) -> tuple[Callable[[], None], Callable[[], None]]:
        """Removal in a transaction: the name stays taken, and in use, until all is agreed.

        Returns how to undo it and how to carry it out. Raises: CommandError.
        """
        node = self._find_node(given["node"])
        bitmap = _free_bitmap(node, given["name"])
        bitmap.busy = True

        def undo() -> None:
            bitmap.busy = False

        def carry_out() -> None:
            del node.bitmaps[bitmap.name]

        return undo, carry_out

    def digest(self, given: Mapping[str, Any]) -> dict[str, str]:
        """``x-debug-block-dirty-bitmap-sha256``. Raises: CommandError."""
        bitmap = find_bitmap(self._find_node(given["node"]), given["name"])
        return {"sha256": bitmap.digest()}

    def _add(self, node: Node, given: Mapping[str, Any]) -> Callable[[], None]:
        name = str(given["name"])
        granularity = given.get("granularity", GRANULARITY_BYTES)
        if not name:
            raise CommandError("Bitmap name cannot be empty")
        if granularity < _GRANULARITY_MIN_BYTES or granularity & (granularity - 1):
            raise CommandError("Granularity must be power of 2 and at least 512")
        persistent = bool(given.get("persistent", False))
        if persistent and node.driver != "qcow2":
            raise CommandError(
                f"Can't store persistent bitmaps to {node.name}: Operation not supported"
            )
        if name in node.bitmaps:
            raise CommandError(f"Bitmap already exists: {name}")
        node.bitmaps[name] = Bitmap(
            name=name,
            size_bytes=node.size_bytes,
            granularity_bytes=granularity,
            recording=not given.get("disabled", False),
            persistent=persistent,
        )

        def undo() -> None:
            del node.bitmaps[name]

        return undo

    def _remove(self, node: Node, name: str) -> Callable[[], None]:
        bitmap = _free_bitmap(node, name)
        del node.bitmaps[name]

        def undo() -> None:
            node.bitmaps[name] = bitmap

        return undo

    def _clear(self, node: Node, name: str) -> Callable[[], None]:
        bitmap = _free_bitmap(node, name)
        before, bitmap.dirty = bitmap.dirty, set()

        def undo() -> None:
            bitmap.dirty = before

        return undo

    def _record(self, node: Node, name: str, *, recording: bool) -> Callable[[], None]:
        bitmap = _free_bitmap(node, name)
        before, bitmap.recording = bitmap.recording, recording

        def undo() -> None:
            bitmap.recording = before

        return undo

    def _merge(self, node: Node, given: Mapping[str, Any]) -> Callable[[], None]:
        target = _free_bitmap(node, given["target"])
        sources = []
        for entry in given["bitmaps"]:
            if isinstance(entry, str):
                sources.append(_free_bitmap(node, entry))
            else:
                sources.append(_free_bitmap(self._find_node(entry["node"]), entry["name"]))
        before = set(target.dirty)
        for source in sources:
            target.merge(source)

        def undo() -> None:
            target.dirty = before

        return undo
