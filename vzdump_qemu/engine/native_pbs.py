"""The native path to a backup server: patched QEMU's own `backup` job sends the disks itself.

Owns what QEMU must know of the server, what it must be able to do, the state of its bitmaps, and
what proves such a backup; the job itself is `native_job`'s. No descriptor and no byte of it passes
through us. Source: host behaviour, sections 1.10 and 5.8; pve-qemu backup QMP, sections 2, 4, 6
and 9; failure modes 58, 73 and 74. Why so:

- The password, and a key's passphrase, go to QEMU in the one command and nowhere else. QEMU's
  library may quote what it was given, so every text of QEMU about the job is struck clean before
  it is told, and is not chained to the error it came with.
- A repository string does not tell whose job it is: see `native_job.JobMark`.
- QEMU's ``done`` is not the last word: the server is asked for the manifest, and only a backup
  with every disk and configuration in it counts. In turn a backup that the server has made final
  is not lost because its answer to QEMU was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vzdump_qemu import events
from vzdump_qemu.engine.context import EnginePorts, ProvedBackup
from vzdump_qemu.engine.job_status import parse_bitmap_infos
from vzdump_qemu.engine.native_job import (
    MONITOR_TIMEOUT_S,
    QUERY_TIMEOUT_S,
    STARTED_ALL_THE_SAME_HINT,
    JobMark,
    NativeJob,
    OwnJob,
    query_job,
)
from vzdump_qemu.engine.pbs_published import FinalPbsBackup, tell_if_unpublished
from vzdump_qemu.engine.run_state import GuestLook
from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.errors import (
    BackupError,
    JobError,
    PbsError,
    QmpClosed,
    QmpCommandError,
    QmpError,
    QmpTimeout,
    QmpUnreachable,
)
from vzdump_qemu.formats.pbs import BackupRef
from vzdump_qemu.pbs_ports import DiskSize, PbsFinished
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.ports import JobProgress, JobStatus, Machine

# Connecting has 120 s inside QEMU, and it answers only once it has connected.
START_TIMEOUT_S = 125.0

# Whatever the files are called that QEMU reads.
STORED_CONFIG_NAME = "qemu-server.conf"
STORED_FIREWALL_NAME = "fw.conf"

_SUPPORT_COMMAND = "query-proxmox-support"


def refuse_features(features: Mapping[str, object] | QmpError, target: PbsTarget) -> None:
    """Raise JobError unless the QEMU that is there can send this backup to a server.

    Args:
        features: its feature list, or why that could not be had.
    """
    if isinstance(features, QmpCommandError) and features.error_class == "CommandNotFound":
        raise JobError(
            "PBS backups are not supported by the running QEMU version. Please make sure you've "
            "installed the latest version and the VM has been restarted."
        ) from features
    if isinstance(features, QmpError):
        raise JobError(f"QMP command {_SUPPORT_COMMAND} failed - {features}") from features
    if not features:
        raise JobError(f"{_SUPPORT_COMMAND} returned empty value")
    if target.master_key_path and features.get("pbs-masterkey") is not True:
        raise JobError(
            "master key configured but running QEMU version does not support master keys",
            hint="restart the VM, so that it runs in the QEMU that is installed",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PbsRequest:
    """One backup at one server.

    Attributes:
        features: of the QEMU that sends it.
    """

    target: PbsTarget
    backup: BackupRef
    features: Mapping[str, object]

    def can(self, feature: str) -> bool:
        """Whether QEMU says that it has that."""
        return self.features.get(feature) is True


class NativePbsPath:
    """One run's `backup` job with a server as its target; a `DataPath`."""

    def __init__(
        self, ports: EnginePorts, machine: Machine, job: NativeJob, request: PbsRequest
    ) -> None:
        self._ports = ports
        self._machine = machine
        self._job = job
        self._request = request
        self._repository = request.target.repository.render()
        self._own = OwnJob(machine)
        self._undo: UndoStack | None = None
        self._uuid_before = ""
        self._told_bitmaps = not request.can("query-bitmap-info")
        self._was_finishing = False

    async def prepare(self, undo: UndoStack) -> None:
        """Leave the monitor connected, and remember whose job is known to it so far."""
        self._undo = undo
        qmp = await self._own.connect(self._job.device_ids, undo)
        self._uuid_before = (await query_job(qmp)).uuid
        await self._own.note(JobMark(target=self._repository, uuid_before=self._uuid_before), undo)

    async def start(self) -> str:
        """Send `backup`; QEMU answers once the server has taken the configurations."""
        try:
            return await self._own.start(self._arguments(), timeout_s=START_TIMEOUT_S)
        except QmpError as error:
            text, is_answer = self._hide(str(error)), isinstance(error, QmpCommandError)
        # Outside of the handler: an error that quotes the password must not go along.
        raise JobError(
            f"VM {self._machine.vmid} qmp command 'backup' failed - {text}",
            hint="" if is_answer else STARTED_ALL_THE_SAME_HINT,
        )

    async def guest_silent(self) -> GuestLook:
        """See `DataPath.guest_silent`."""
        return await self._own.guest_silent()

    async def started(self) -> None:
        """The window is over: let the next client have the monitor, and note the job's uuid."""
        await self._own.let_go()
        self._own.require_uuid()
        assert self._undo is not None
        mark = JobMark(target=self._repository, uuid_before=self._uuid_before, uuid=self._own.uuid)
        await self._own.note(mark, self._undo)

    async def progress(self) -> JobProgress:
        """See `DataPath.progress`; the first look tells what the bitmaps are good for."""
        if not self._told_bitmaps:
            await self._tell_bitmaps()
            self._told_bitmaps = True
        progress = await self._own.progress()
        progress = replace(
            progress,
            error_text=self._hide(progress.error_text),
            status_text=self._hide(progress.status_text),
        )
        if progress.status is JobStatus.ERROR and self._was_finishing:
            return await self._look_again(progress)
        self._was_finishing = self._was_finishing or progress.finishing
        return progress

    def failure(self) -> BackupError | None:
        """Nothing of the target's side is ours: QEMU tells it."""
        return None

    async def finish(self) -> ProvedBackup:
        """QEMU says that it is done; see what the server says."""
        self._own.ended()
        assert self._undo is not None
        untold = tell_if_unpublished(self._ports, self._request.backup, self._undo)
        try:
            finished = await self._prove()
        except PbsError as error:
            untold.dismiss()
            raise PbsError(
                f"QEMU is done, but the backup cannot be shown to be whole - {error}",
                hint=error.hint or "look at the backup at its server, and do not rely on it",
            ) from error
        size_bytes = sum(self._own.disk_sizes.values())
        finished = replace(finished, size_bytes=size_bytes)
        return FinalPbsBackup(self._ports, self._request.backup, finished, untold)

    def _arguments(self) -> dict[str, Any]:
        target, job = self._request.target, self._job
        backup = self._request.backup
        arguments = job.arguments(self._repository) | {
            "format": "pbs",
            "backup-id": backup.backup_group.backup_id,
            "backup-time": backup.backup_time_s,
            "password": target.password.reveal(),
            "encrypt": bool(target.key_path),
        }
        if job.rate_limit_bytes_per_s:
            arguments["speed"] = job.rate_limit_bytes_per_s
        if not target.namespace.is_root:
            arguments["backup-ns"] = str(target.namespace)
        if target.fingerprint is not None:
            arguments["fingerprint"] = str(target.fingerprint)
        if target.key_path:
            arguments["keyfile"] = target.key_path
        if target.key_passphrase is not None:
            arguments["key-password"] = target.key_passphrase.reveal()
        if target.master_key_path:
            arguments["master-keyfile"] = target.master_key_path
        if self._request.can("pbs-dirty-bitmap") and not job.is_template:
            arguments["use-dirty-bitmap"] = True
        return arguments

    async def _tell_bitmaps(self) -> None:
        emit = self._ports.emit
        try:
            async with self._machine.connect_qmp(timeout_s=MONITOR_TIMEOUT_S) as qmp:
                reply = await qmp.execute("query-pbs-bitmap-info", timeout_s=QUERY_TIMEOUT_S)
            infos = parse_bitmap_infos(reply)
        except (QmpUnreachable, QmpTimeout, QmpClosed):
            raise  # whoever watches the job asks again
        except QmpError as error:
            emit(events.Warned(text=f"unable to tell the state of the dirty bitmaps - {error}"))
            return
        if not self._job.is_template:
            for info in infos:
                emit(
                    events.BitmapUsed(
                        device_id=info.device_id,
                        action=info.action,
                        size_bytes=info.size_bytes,
                        dirty_bytes=info.dirty_bytes,
                    )
                )
        dirty_bytes = sum(info.dirty_bytes for info in infos)
        total_bytes = sum(info.size_bytes for info in infos)
        if dirty_bytes < total_bytes:
            emit(events.FastIncrementBegun(dirty_bytes=dirty_bytes, total_bytes=total_bytes))

    async def _look_again(self, failed: JobProgress) -> JobProgress:
        """A server may have made a backup final whose sender heard nothing of it."""
        try:
            await self._prove()
        except PbsError:
            return failed
        text = f"the backup is final, but QEMU did not hear so: {failed.error_text}"
        self._ports.emit(events.Warned(text=text))
        return replace(failed, status=JobStatus.DONE, error_text="")

    async def _prove(self) -> PbsFinished:
        request = self._request
        sizes = self._own.disk_sizes
        disks = [DiskSize(device_id=name, size_bytes=size) for name, size in sizes.items()]
        names = [STORED_CONFIG_NAME]
        if self._job.firewall_path:
            names.append(STORED_FIREWALL_NAME)
        return await self._ports.pbs.prove(request.target, request.backup, disks, names)

    def _hide(self, text: str) -> str:
        return self._request.target.hide_in(text)
