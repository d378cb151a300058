"""What changed since an earlier backup: dirty bitmaps of ours in a running QEMU.

Owns their names, when one may be believed, and what becomes of them when a run ends. Which backup
a target holds is the target's to say; reading the marked parts is left to `disk_ports`. Source:
failure modes 77 to 82; measured on QEMU 7.2.22. How it works, and why so:

- QEMU's memory is the only record. A bitmap's name tells the target, the backup it counts from
  and the disk's size then; it is never persistent. So a QEMU that was started anew (a restore, a
  return to an earlier state, an offline resize, a kill) has none, and there is no file to be stale.
- A run adds a bitmap of its own, under a name that no later run believes. Only after the target
  said that the backup is whole does its content get the name of that backup, in one transaction,
  and only then does the earlier one go. A run that fails, or is killed anywhere, loses nothing:
  the earlier bitmap was neither cleared nor stopped.
- No transaction can hold the reopen that fixes the point in time. It need not: the new bitmap
  begins just before, the earlier one is copied just after. What is written in between is in both,
  so either may mark too much and never too little. A write is marked when it ends, and the reopen
  waits for those under way, so none falls between.
- A reader needs a bitmap that stands still ("Enabled bitmap 'b' incompatible with readonly
  export"): the copy lies on the fleecing node and goes with it.
- A transaction cannot remove a bitmap and add one of that name ("Bitmap already exists").
- A return to an internal snapshot while QEMU runs is refused by QEMU as long as a node has a
  bitmap (``loadvm``: "Device has active dirty bitmaps"), so the disk cannot change unseen.
- Not to be seen: a disk that is made smaller and larger again by ``block_resize`` while it runs
  loses the bits of what was cut off.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vzdump_qemu import events
from vzdump_qemu.disk_ports import PIECE_BYTES
from vzdump_qemu.engine.pull_disks import QUERY_TIMEOUT_S, PullDisk
from vzdump_qemu.engine.pull_nodes import CHANGE_TIMEOUT_S, NODE_PREFIX, PullNodes
from vzdump_qemu.engine.undo import UndoHandle, UndoStack
from vzdump_qemu.errors import QmpCommandError, QmpError
from vzdump_qemu.events import Emit
from vzdump_qemu.journal_ports import Reversal, ReversalKind
from vzdump_qemu.ports import Machine, Qmp

MONITOR_TIMEOUT_S = 60.0
# Inside the freeze window; nothing is lost if it fails.
CLEAR_TIMEOUT_S = 5.0
NAME_PREFIX = "vzdump-qemu-"
_COPY_PREFIX = f"{NODE_PREFIX}changes-"
_HEX_COUNT = 16
_KEPT = re.compile(rf"(?P<base>[0-9a-f]{{{_HEX_COUNT}}})-(?P<size>[0-9a-f]+)")
_BEGUN = re.compile(r"new-[0-9a-f]{32}")

NO_BASE = "the target holds no backup to build upon"
NO_BITMAP = "no bitmap: QEMU was started anew, or this is the first backup"
OTHER_BASE = "the bitmap does not belong to the backup at the target"
OTHER_SIZE = "the disk had another size at the time of that backup"


@dataclass(frozen=True, slots=True, kw_only=True)
class IncrementalRequest:
    """What a target asks for that can take up what it already holds.

    Attributes:
        target_id: names the place where this VM's backups are, for ever and no other.
        base_id: names the backup whose content is taken for what did not change; empty if there
            is none to be used.
        refusal: why there is none, where the target knows more than that.
        granularity_bytes: power of two; what one bit stands for.
    """

    target_id: str
    base_id: str = ""
    refusal: str = ""
    granularity_bytes: int = PIECE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class IncrementalPlan:
    """How one disk is read.

    Attributes:
        is_reused: what the bitmap leaves unmarked is as in the base.
        changed_bytes: upper bound of what is not.
        reason: why everything is read; empty if `is_reused`.
    """

    device_id: str
    is_reused: bool
    changed_bytes: int
    reason: str = ""


class ChangeTracking:
    """The bitmaps of one run.

    Args:
        token: 32 hexadecimal digits, another in every run.
    """

    def __init__(
        self, machine: Machine, request: IncrementalRequest, emit: Emit, *, token: str
    ) -> None:
        self._machine = machine
        self._request = request
        self._emit = emit
        self._prefix = f"{NAME_PREFIX}{_digest(request.target_id)}-"
        self._begun_name = f"{self._prefix}new-{token}"
        self._begun: tuple[PullDisk, ...] = ()
        self._handle: UndoHandle | None = None
        self.plans: tuple[IncrementalPlan, ...] = ()
        self._refusals: dict[str, str] = {}

    def refuse(self, device_id: str, reason: str) -> None:
        """The target cannot build upon what it holds of this disk, whatever its bitmap says."""
        self._refusals[device_id] = reason

    async def begin(self, disks: Sequence[PullDisk], undo: UndoStack) -> None:
        """Count the changes from here on; a QEMU that cannot costs the next backup, not this."""
        nodes = tuple(found.node_name for found in disks)
        self._handle = await undo.push(
            "remove the bitmaps of this run",
            lambda: drop_bitmaps(self._machine, self._begun_name, nodes),
            Reversal(kind=ReversalKind.DROP_BITMAPS, names=(self._begun_name, *nodes)),
        )
        actions = [self._add(found.node_name, self._begun_name) for found in disks]
        try:
            async with self._machine.connect_qmp(timeout_s=MONITOR_TIMEOUT_S) as qmp:
                await _transact(qmp, actions)
        except QmpCommandError as error:
            self._warn(str(error))
            return
        self._begun = tuple(disks)

    async def clear(self, qmp: Qmp) -> None:
        """Forget what was written until now; the point in time is fixed next."""
        actions = [
            _action("clear", node=found.node_name, name=self._begun_name) for found in self._begun
        ]
        if actions:
            try:
                await _transact(qmp, actions, timeout_s=CLEAR_TIMEOUT_S)
            except QmpCommandError:
                # It marks a little more than it must.
                return

    async def copy(self, qmp: Qmp, nodes: PullNodes, found: PullDisk) -> str:
        """Put the changes since the base beside what is exported; the copy's name.

        Empty if no bitmap can be believed: `plans` and an event tell why.
        """
        reason = await self._judge(qmp, found)
        copy_name = f"{_COPY_PREFIX}{nodes.index}"
        if not reason:
            source = {"node": found.node_name, "name": self._kept_name(found)}
            try:
                await _transact(
                    qmp,
                    [
                        self._add(nodes.fleecing, copy_name, disabled=True),
                        _action("merge", node=nodes.fleecing, target=copy_name, bitmaps=[source]),
                    ],
                )
            except QmpCommandError as error:
                reason = str(error)
        if reason:
            self.read_all(found.disk.device_id, found.size_bytes, reason)
            return ""
        copied = (await _bitmaps_of(qmp, nodes.fleecing)).get(copy_name, {})
        changed_bytes = min(int(copied.get("count", found.size_bytes)), found.size_bytes)
        self._plan(found.disk.device_id, found.size_bytes, changed_bytes)
        return copy_name

    def read_all(self, device_id: str, size_bytes: int, reason: str) -> None:
        """Plan one disk to be read whole."""
        self._plan(device_id, size_bytes, size_bytes, reason=reason)

    async def keep(self, backup_id: str) -> None:
        """The target has the backup, whole: from now on its changes are counted.

        What cannot be kept costs the next backup its speed; it is told, not raised.
        """
        is_complete = bool(self._begun)
        try:
            async with self._machine.connect_qmp(timeout_s=MONITOR_TIMEOUT_S) as qmp:
                for found in self._begun:
                    try:
                        await self._keep_one(qmp, found, _digest(backup_id))
                    except QmpCommandError as error:
                        is_complete = False
                        self._warn(f"{found.disk.device_id}: {error}")
        except QmpError as error:
            self._warn(str(error))
            return
        if self._handle is not None and is_complete:
            self._handle.dismiss()

    # -- one disk ------------------------------------------------------------------------------

    async def _judge(self, qmp: Qmp, found: PullDisk) -> str:
        """Why the bitmap of a disk cannot be believed; empty if it can."""
        if not self._request.base_id:
            return self._request.refusal or NO_BASE
        refusal = self._refusals.get(found.disk.device_id, "")
        if refusal:
            return refusal
        bitmaps = await _bitmaps_of(qmp, found.node_name)
        kept = bitmaps.get(self._kept_name(found))
        if kept is not None:
            return self._distrust(kept)
        bases = {
            match["base"]
            for name in bitmaps
            if name.startswith(self._prefix)
            and (match := _KEPT.fullmatch(name.removeprefix(self._prefix)))
        }
        if _digest(self._request.base_id) in bases:
            return OTHER_SIZE
        return OTHER_BASE if bases else NO_BITMAP

    def _distrust(self, bitmap: Mapping[str, Any]) -> str:
        """What is wrong with a bitmap of the right name; empty if nothing is."""
        if bitmap.get("inconsistent"):
            return "the bitmap is inconsistent"
        if bitmap.get("persistent"):
            return "the bitmap is stored in the image, so it is not ours"
        if bitmap.get("busy"):
            return "the bitmap is in use by another operation"
        if not bitmap.get("recording"):
            return "the bitmap was stopped meanwhile"
        if bitmap.get("granularity") != self._request.granularity_bytes:
            return f"the bitmap has a granularity of {bitmap.get('granularity')} bytes"
        return ""

    async def _keep_one(self, qmp: Qmp, found: PullDisk, digest: str) -> None:
        node = found.node_name
        name = f"{self._prefix}{digest}-{found.size_bytes:x}"
        bitmaps = await _bitmaps_of(qmp, node)
        if name in bitmaps:
            if self._distrust(bitmaps[name]):
                # Not one of ours; it will not be believed either.
                self._warn(f"{found.disk.device_id}: a bitmap '{name}' is there already")
                await _remove(qmp, node, self._begun_name)
                return
            await _remove(qmp, node, name)
        await _transact(
            qmp,
            [
                self._add(node, name),
                _action("merge", node=node, target=name, bitmaps=[self._begun_name]),
                _action("remove", node=node, name=self._begun_name),
            ],
        )
        for earlier, bitmap in bitmaps.items():
            if earlier not in (name, self._begun_name) and self._is_outdated(earlier, bitmap):
                await _remove(qmp, node, earlier)

    def _is_outdated(self, name: str, bitmap: Mapping[str, Any]) -> bool:
        """Whether an earlier run of ours left it, for this target."""
        rest = name.removeprefix(self._prefix)
        is_ours = rest != name and (_KEPT.fullmatch(rest) or _BEGUN.fullmatch(rest))
        untouchable = any(bitmap.get(key) for key in ("persistent", "inconsistent", "busy"))
        return bool(is_ours) and not untouchable

    def _kept_name(self, found: PullDisk) -> str:
        return f"{self._prefix}{_digest(self._request.base_id)}-{found.size_bytes:x}"

    def _add(self, node: str, name: str, **options: bool) -> dict[str, Any]:
        granularity = self._request.granularity_bytes
        return _action("add", node=node, name=name, granularity=granularity, **options)

    def _plan(
        self, device_id: str, size_bytes: int, changed_bytes: int, *, reason: str = ""
    ) -> None:
        plan = IncrementalPlan(
            device_id=device_id,
            is_reused=not reason,
            changed_bytes=changed_bytes,
            reason=reason,
        )
        self.plans = (*self.plans, plan)
        self._emit(
            events.IncrementPlanned(
                device_id=device_id,
                size_bytes=size_bytes,
                changed_bytes=changed_bytes,
                reason=reason,
            )
        )

    def _warn(self, text: str) -> None:
        self._emit(events.Warned(text=f"the next backup will read everything - {text}"))


async def drop_bitmaps(machine: Machine, name: str, node_names: Sequence[str]) -> None:
    """Remove a run's own bitmaps where they are still there; idempotent."""
    if not await machine.is_running():
        return
    async with machine.connect_qmp(timeout_s=MONITOR_TIMEOUT_S) as qmp:
        for node_name in node_names:
            if name in await _bitmaps_of(qmp, node_name):
                await _remove(qmp, node_name, name)


async def _bitmaps_of(qmp: Qmp, node_name: str) -> dict[str, Mapping[str, Any]]:
    """A node's bitmaps by name; none if there is no such node."""
    nodes = await qmp.execute("query-named-block-nodes", {"flat": True}, timeout_s=QUERY_TIMEOUT_S)
    for node in nodes:
        if node.get("node-name") == node_name:
            bitmaps = node.get("dirty-bitmaps", ())
            return {str(bitmap["name"]): bitmap for bitmap in bitmaps if bitmap.get("name")}
    return {}


async def _remove(qmp: Qmp, node_name: str, name: str) -> None:
    arguments = {"node": node_name, "name": name}
    await qmp.execute("block-dirty-bitmap-remove", arguments, timeout_s=CHANGE_TIMEOUT_S)


async def _transact(
    qmp: Qmp, actions: Sequence[Mapping[str, Any]], *, timeout_s: float = CHANGE_TIMEOUT_S
) -> None:
    await qmp.execute("transaction", {"actions": list(actions)}, timeout_s=timeout_s)


def _action(verb: str, **data: Any) -> dict[str, Any]:
    return {"type": f"block-dirty-bitmap-{verb}", "data": data}


def _digest(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:_HEX_COUNT]
