"""The runs of a job: begun in order, several at once where that is allowed, and all waited for.

Owns starting, ending and cancelling them; which VM may begin is `plan.batch_schedule`'s, what is
around the runs is `batch`'s. Source: host behaviour, section 1.6.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from vzdump_qemu import events
from vzdump_qemu.engine.backup_place import JobTarget
from vzdump_qemu.engine.context import EnginePorts, RunResult
from vzdump_qemu.engine.job_target import name_target
from vzdump_qemu.engine.run import back_up_vm
from vzdump_qemu.errors import BackupError
from vzdump_qemu.formats.vm_config import parse_vm_config
from vzdump_qemu.plan.batch_schedule import BatchSchedule
from vzdump_qemu.plan.disks import select_disks
from vzdump_qemu.plan.options import BackupOptions, StorageLimits

_NAMED_COUNT_MAX = 8


class BatchRuns:
    """Backs up VMs and keeps how each ended.

    Args:
        target: where all backups go.
        results: gets every result, in the order in which the runs end.
    """

    def __init__(
        self,
        ports: EnginePorts,
        options: BackupOptions,
        target: JobTarget,
        results: list[RunResult],
    ) -> None:
        self._ports = ports
        self._options = options
        self._target = target
        self._results = results
        self._running: dict[asyncio.Task[RunResult], int] = {}

    async def back_up_each(self, vmids: Sequence[int]) -> None:
        """Back up every VM; one that fails stops no other.

        Raises:
            BackupError: the deadline came before some of them had begun.
        Cancelled: every run that goes on is cancelled, and has put its guest back.
        """
        batch = self._options.batch
        schedule = BatchSchedule(
            await self._find_storages(vmids),
            parallel_max=batch.parallel_max,
            limits=batch.storage_limits,
        )
        try:
            while True:
                while self._has_time and (vmid := schedule.begin_next()) is not None:
                    self._begin(vmid)
                if not self._running:
                    break
                await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
                for vmid in self._collect():
                    schedule.end(vmid)
        finally:
            # Nothing is left here but after a cancellation, or an error that is a bug.
            await self._cancel_all()
        if schedule.waiting:
            missing = _name_some(schedule.waiting)
            raise BackupError(
                f"deadline reached before these VMs were begun: {missing}",
                hint="--deadline leaves more time, --max-parallel uses it better",
            )

    def _begin(self, vmid: int) -> None:
        ports = self._ports.of_run(vmid)
        run = back_up_vm(ports, self._options, vmid, target=self._target)
        self._running[asyncio.ensure_future(run)] = vmid

    def _collect(self) -> list[int]:
        """Take the results of the runs that ended; return their VMs."""
        ended = [task for task in self._running if task.done()]
        vmids = [self._running.pop(task) for task in ended]
        for task in ended:
            if not task.cancelled():
                self._results.append(task.result())
        return vmids

    async def _cancel_all(self) -> None:
        """Cancel what goes on and wait for its end; a further cancellation hurries it."""
        was_cancelled = False
        for task in self._running:
            task.cancel()
        while any(not task.done() for task in self._running):
            try:
                await asyncio.wait(self._running)
            except asyncio.CancelledError:
                was_cancelled = True
                for task in self._running:
                    task.cancel()
        self._collect()
        if was_cancelled:
            raise asyncio.CancelledError

    @property
    def _has_time(self) -> bool:
        deadline_s = self._options.batch.deadline_wall_s
        return deadline_s is None or self._ports.clock.wall_s() < deadline_s

    async def _find_storages(self, vmids: Sequence[int]) -> dict[int, frozenset[str]]:
        """The limited storages that each VM's run touches."""
        limits = self._options.batch.storage_limits
        if limits == StorageLimits():
            return {vmid: frozenset() for vmid in vmids}
        common = {name_target(self._options.target)}
        if self._options.fleecing.enabled:
            common.add(self._options.fleecing.storage_id)
        found = {
            vmid: frozenset(common - {""}) | await self._find_disk_storages(vmid) for vmid in vmids
        }
        touched = frozenset[str]().union(*found.values())
        for storage_id, _ in limits.by_storage:
            if storage_id not in touched:
                text = f"storage-limit: no VM of this job touches storage '{storage_id}'"
                self._ports.emit(events.Warned(text=text))
        return found

    async def _find_disk_storages(self, vmid: int) -> frozenset[str]:
        try:
            raw = await self._ports.node.read_vm_config(vmid)
        except BackupError:
            return frozenset()  # its run will fail and tell why
        choices = select_disks(parse_vm_config(raw, vmid=vmid))
        volids = (choice.volid for choice in choices if choice.included)
        # A disk with a path of its own is on no storage.
        return frozenset(volid.partition(":")[0] for volid in volids if not volid.startswith("/"))


def _name_some(vmids: Sequence[int]) -> str:
    """All of a few, of many the first ones and how many more there are."""
    named = ", ".join(str(vmid) for vmid in vmids[:_NAMED_COUNT_MAX])
    more_count = len(vmids) - _NAMED_COUNT_MAX
    return f"{named} and {more_count} more" if more_count > 0 else named
