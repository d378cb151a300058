"""``blockdev-backup`` and ``drive-mirror``: checks, creation, and what a job's end leaves behind.

Owns which nodes a job holds and what becomes of its bitmap. The copying is `copy_job`'s. Texts and
their order: recorded sessions ``stock-pull-errors``, ``stock-push-bitmap``,
``stock-pull-blocked-operations``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vzsim.fakeqmp.bitmaps import Bitmap
from vzsim.fakeqmp.copy_before_write import PIECE_BYTES, CopyBeforeWrite, piece_count
from vzsim.fakeqmp.copy_job import CopyJob, CopyParts, CopyPlan, JobGroup
from vzsim.fakeqmp.jobs import Job
from vzsim.fakeqmp.nodes import Node
from vzsim.fakeqmp.schema import CommandError

if TYPE_CHECKING:
    from vzsim.fakeqmp.machine import Machine

_MIRROR_BITMAP = ""


class BlockJobs:
    """The copying jobs of one machine (backups of the Proxmox kind are not among them)."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._copies: dict[str, CopyJob] = {}
        # Bits that a job of that id took over from its bitmap, and what shall become of them.
        self._taken: dict[str, tuple[Bitmap, set[int], str]] = {}
        self._mirror_targets: dict[str, Node] = {}

    def backup(self, given: Mapping[str, Any]) -> None:
        """``blockdev-backup``. Raises: CommandError."""
        self.start([self.prepare_backup(given, JobGroup())])

    def start(self, copies: list[CopyJob]) -> None:
        """Start prepared jobs together."""
        self._machine.jobs.start_together([copy.job for copy in copies])
        for copy in copies:
            copy.begin()

    def cancel_all(self) -> None:
        """The process ends: so do its jobs."""
        for copy in list(self._copies.values()):
            copy.abort()

    def die_quietly(self) -> None:
        """The process is gone: no more work, not a word."""
        for copy in self._copies.values():
            copy.die_quietly()

    # -- backup --------------------------------------------------------------------------------

    def prepare_backup(self, given: Mapping[str, Any], group: JobGroup) -> CopyJob:
        """Check and create one job. Raises: CommandError."""
        block = self._machine.block
        source = block.look_up(given["device"])
        target = block.look_up(given["target"])
        bitmap = self._chosen_bitmap(source, given)
        self._check_pair(source, target, given)
        job_id = self._check_id(given)
        source_disk, target_disk = source.disk, target.disk
        if source_disk is None or target_disk is None:
            raise CommandError(f"Device '{given['device']}' has no medium")

        def copied(length_bytes: int) -> None:
            self._copies[job_id].copied(length_bytes)

        guard = CopyBeforeWrite(source_disk, target_disk, on_copied=copied)
        length = source.size_bytes
        if bitmap is not None:
            guard.todo = _pieces_of(bitmap, guard.todo)
            length = len(bitmap.dirty) * bitmap.granularity_bytes
        block.begin_writing(target)
        block.add_filter(source, guard)
        target.parents.add(job_id)
        copy = self._make(
            _job(given, job_id, "backup", length, self._names(source, target)),
            CopyPlan(
                source=source,
                target=target,
                guard=guard,
                copies=given["sync"] != "none",
                on_source_error=given.get("on-source-error", "report"),
                on_target_error=given.get("on-target-error", "report"),
            ),
            group,
        )
        if bitmap is not None:
            self._take(bitmap, job_id, given)
        return copy

    def _make(self, job: Job, plan: CopyPlan, group: JobGroup) -> CopyJob:
        machine = self._machine
        parts = CopyParts(
            jobs=machine.jobs,
            emit=machine.emit,
            timebase=machine.timebase,
            pace_bytes_per_s=machine.script.backup.bytes_per_s,
            on_end=self._ended,
        )
        copy = CopyJob(parts, job, plan, group)
        self._copies[job.job_id] = copy
        return copy

    def _names(self, source: Node, target: Node) -> frozenset[str]:
        """What a job blocks: its target, and backends over its source."""
        names = {target.name}
        for name in (source.name, *source.roots):
            backend = self._machine.block.backend_of(name.removeprefix("device "))
            if backend is not None and backend.device_id:
                names.add(backend.device_id)
        return frozenset(names)

    def _chosen_bitmap(self, source: Node, given: Mapping[str, Any]) -> Bitmap | None:
        sync, name = given["sync"], given.get("bitmap")
        if name is None:
            if sync in ("bitmap", "incremental"):
                raise CommandError(f"must provide a valid bitmap name for '{sync}' sync mode")
            return None
        mode = given.get("bitmap-mode")
        if sync == "incremental" and mode not in (None, "on-success"):
            raise CommandError(
                "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'"
            )
        bitmap = source.bitmaps.get(name)
        if bitmap is None:
            raise CommandError(f"Bitmap '{name}' could not be found")
        if mode is None and sync != "incremental":
            raise CommandError("Bitmap sync mode must be given when providing a bitmap")
        if bitmap.busy:
            raise CommandError(
                f"Bitmap '{name}' is currently in use by another operation and cannot be used"
            )
        return bitmap if sync in ("bitmap", "incremental") else None

    def _check_pair(self, source: Node, target: Node, given: Mapping[str, Any]) -> None:
        jobs = self._machine.jobs
        if source is target:
            raise CommandError("Source and target cannot be the same")
        if given.get("compress") and target.driver != "qcow2":
            backend = self._machine.block.backend_of(target.name)
            name = backend.device_id if backend else ""
            raise CommandError(f"Compression is not supported for this drive {name}")
        for name in (given["device"], target.name):
            try:
                jobs.refuse_if_busy(name)
            except CommandError:
                jobs.drain_nodes({source.name})
                raise
        if source.size_bytes != target.size_bytes:
            raise CommandError("Source and target image have different sizes")

    def _check_id(self, given: Mapping[str, Any]) -> str:
        backend = self._machine.block.backend_of(given["device"])
        job_id = given.get("job-id", backend.device_id if backend else "")
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", job_id):
            raise CommandError(f"Invalid job ID '{job_id}'")
        if self._machine.jobs.has(job_id):
            raise CommandError(f"Job ID '{job_id}' already in use")
        return str(job_id)

    def _take(self, bitmap: Bitmap, job_id: str, given: Mapping[str, Any]) -> None:
        """The job owns the bits set so far; new writes are recorded from here on."""
        self._taken[job_id] = (bitmap, bitmap.dirty, given.get("bitmap-mode", "on-success"))
        bitmap.dirty, bitmap.busy = set(), True

    # -- mirror --------------------------------------------------------------------------------

    def mirror(self, given: Mapping[str, Any]) -> None:
        """``drive-mirror`` to a new raw image. Raises: CommandError."""
        machine = self._machine
        source = machine.block.look_up(given["device"])
        if source.filter_node is not None:
            raise CommandError("Need a root block node")
        machine.jobs.refuse_if_busy(given["device"])
        job_id, path = self._check_id(given), str(given["target"])
        disk = source.disk
        if disk is None:
            raise CommandError(f"Device '{given['device']}' has no medium")
        if given.get("mode", "absolute-paths") != "existing":
            machine.storage.create_disk(path, source.size_bytes)
        target = machine.block.add_node(
            {
                "driver": given.get("format", "raw"),
                "file": {"driver": "file", "filename": path},
            }
        )
        self._mirror_targets[job_id] = target
        target_disk = target.disk
        if target_disk is None:
            raise CommandError(f"Could not open '{path}'")
        changes = Bitmap(name=_MIRROR_BITMAP, size_bytes=source.size_bytes)
        source.bitmaps[_MIRROR_BITMAP] = changes

        def copied(length_bytes: int) -> None:
            self._copies[job_id].copied(length_bytes)

        copy = self._make(
            _job(given, job_id, "mirror", source.size_bytes, frozenset({given["device"]})),
            CopyPlan(
                source=source,
                target=target,
                guard=CopyBeforeWrite(disk, target_disk, on_copied=copied),
                mirrors=True,
                changes=changes,
                on_source_error=given.get("on-source-error", "report"),
                on_target_error=given.get("on-target-error", "report"),
            ),
            JobGroup(),
        )
        self.start([copy])

    # -- end -----------------------------------------------------------------------------------

    def _ended(self, copy: CopyJob, succeeded: bool) -> None:
        block, plan, job_id = self._machine.block, copy.plan, copy.job.job_id
        del self._copies[job_id]
        block.remove_filter(plan.source, plan.guard)
        plan.target.parents.discard(job_id)
        plan.source.bitmaps.pop(_MIRROR_BITMAP, None)
        block.end_writing(plan.target)
        mirror_target = self._mirror_targets.pop(job_id, None)
        if mirror_target is not None:
            block.remove_node(mirror_target.name)
        if job_id in self._taken:
            self._give_back(job_id, plan.guard, succeeded=succeeded)

    def _give_back(self, job_id: str, guard: CopyBeforeWrite, *, succeeded: bool) -> None:
        bitmap, bits, mode = self._taken.pop(job_id)
        bitmap.busy = False
        if mode == "never" or (mode == "on-success" and not succeeded):
            bitmap.dirty |= bits
        elif mode == "always":
            left = {index * PIECE_BYTES // bitmap.granularity_bytes for index in guard.todo}
            bitmap.dirty |= left & bits


def _job(
    given: Mapping[str, Any], job_id: str, kind: str, length_bytes: int, names: frozenset[str]
) -> Job:
    return Job(
        job_id=job_id,
        kind=kind,
        length_bytes=length_bytes,
        speed_bytes_per_s=given.get("speed", 0),
        auto_finalize=given.get("auto-finalize", True),
        auto_dismiss=given.get("auto-dismiss", True),
        blocked=names,
        drained_with=names,
    )


def _pieces_of(bitmap: Bitmap, pieces: set[int]) -> set[int]:
    """Pieces of the job that a bitmap marks at least in part."""
    as_pieces = Bitmap(name="", size_bytes=bitmap.size_bytes, granularity_bytes=PIECE_BYTES)
    as_pieces.merge(bitmap)
    return as_pieces.dirty & pieces & set(range(piece_count(bitmap.size_bytes)))
