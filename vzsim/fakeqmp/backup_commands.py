"""The commands that the Proxmox build adds: checks, start and state of backups.

Owns the order of the checks (device list, then descriptor, then configuration files, then jobs),
because it decides what stays behind after a failure. The copying is `backup_run`'s.
Source: PVE interface, sections 2 to 8.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vzdump_qemu.units import MIB, SECTOR_BYTES, ceil_div
from vzsim.fakeqmp.backup_run import BackupRun, DiskCopy, RunParts
from vzsim.fakeqmp.backup_state import BackupFigures, describe
from vzsim.fakeqmp.copy_before_write import CopyBeforeWrite
from vzsim.fakeqmp.jobs import Job, JobPhase
from vzsim.fakeqmp.nodes import EmptyDrive, Node
from vzsim.fakeqmp.outside import Sink
from vzsim.fakeqmp.replies import Pending
from vzsim.fakeqmp.schema import CommandError
from vzsim.fakeqmp.vma_output import VmaOutput

if TYPE_CHECKING:
    from vzsim.fakeqmp.machine import Machine
    from vzsim.fakeqmp.monitor import Monitor

_OWNER = "Proxmox"
_CONFIG_BYTES_MAX = 65535
_WORKER_COUNT_MAX = 2**31 - 1
_BITMAP_GRANULARITY_BYTES = 4 * MIB
_NOT_FLEECED = ("drive-efidisk", "drive-tpmstate")

SUPPORT = {
    "query-bitmap-info": True,
    "pbs-dirty-bitmap-savevm": True,
    "pbs-library-version": "",
    "pbs-dirty-bitmap": True,
    "backup-access-api": True,
    "pbs-masterkey": True,
    "backup-fleecing": True,
    "pbs-dirty-bitmap-migration": True,
    "backup-max-workers": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    """One entry of the device list, looked up."""

    name: str
    node: Node
    fleecing: Node | None


class BackupService:
    """Backups of one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._figures: BackupFigures | None = None
        self._run: BackupRun | None = None
        self._access_owner = ""
        # Dirty pieces per owner and device; writes since the setup are kept apart.
        self._access_bitmaps: dict[tuple[str, str], set[int]] = {}
        self._access_writes: dict[str, set[int]] = {}
        self._access_views: list[tuple[str, Node, CopyBeforeWrite]] = []

    @property
    def run(self) -> BackupRun | None:
        """The backup that runs now."""
        return self._run

    def query(self) -> dict[str, Any]:
        """Reply of ``query-backup``."""
        return describe(self._figures, self._machine.script.backup)

    def query_bitmaps(self) -> list[dict[str, Any]]:
        """Reply of ``query-pbs-bitmap-info``."""
        return self._figures.bitmap_infos if self._figures else []

    def cancel(self) -> Pending | dict[str, Any]:
        """``backup-cancel``: succeeds also when nothing runs; a success becomes an error."""
        if self._run is not None:
            pending = Pending()
            self._run.cancel(lambda: pending.resolve({}))
            return pending
        # A failed start leaves the figures without an end; a cancel does not change them.
        is_stuck = self._figures is not None and self._figures.status == "active"
        if self._figures is not None and (not is_stuck or self._access_owner):
            self._figures.record_error("backup canceled")
        return {}

    def stop_for_exit(self, done: Callable[[], None]) -> None:
        """End a running backup because the process ends; waits for a full target."""
        if self._run is None:
            done()
        else:
            self._run.cancel(done)

    def start(self, monitor: Monitor | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """``backup``.

        Raises: CommandError. Inputs that kill the real process kill this one.
        """
        self._refuse_if_active()
        names = self._device_names(arguments.get("devlist"))
        chosen = self._choose(names, fleecing=bool(arguments.get("fleecing", False)))
        if arguments.get("format", "vma") == "pbs":
            raise self._pbs_error(arguments)
        target = str(arguments["backup-file"])
        sink, created_path = self._open_target(monitor, target)
        try:
            configs = self._read_configs(arguments)
            return self._start_jobs(sink, chosen, arguments, configs)
        except CommandError:
            sink.close()
            if created_path:
                self._machine.host.remove_target(created_path)
            raise

    # -- checks --------------------------------------------------------------------------------

    def _refuse_if_active(self) -> None:
        owner = self._access_owner or (_OWNER if self._run is not None else "")
        if owner:
            raise CommandError(f"previous backup for target '{owner}' not finished")

    def _device_names(self, device_list: object) -> list[str]:
        if isinstance(device_list, str):
            names = re.split("[,;:]", device_list) if device_list else []
        else:
            names = self._machine.block.default_names()
        if not names:
            raise CommandError("empty device list")
        return names

    def _choose(self, names: list[str], *, fleecing: bool) -> list[_Chosen]:
        block, jobs = self._machine.block, self._machine.jobs
        chosen = []
        for name in names:
            try:
                node = block.find(name)
            except EmptyDrive:
                self._machine.die("SIGSEGV")
                raise CommandError("the process died") from None
            jobs.refuse_if_busy(name)
            below = None
            if fleecing and not name.startswith(_NOT_FLEECED):
                below = self._find_fleecing(name, node)
            chosen.append(_Chosen(name=name, node=node, fleecing=below))
        return chosen

    def _find_fleecing(self, name: str, node: Node) -> Node:
        fleecing_name = f"{name}-fleecing"
        below = self._machine.block.find(fleecing_name)
        have_bytes = below.disk.size_bytes if below.disk else 0
        want_bytes = node.disk.size_bytes if node.disk else 0
        if have_bytes != want_bytes:
            raise CommandError(
                f"Size mismatch for '{fleecing_name}' - sector count"
                f" {have_bytes // SECTOR_BYTES} != {want_bytes // SECTOR_BYTES}"
            )
        return below

    def _pbs_error(self, arguments: Mapping[str, Any]) -> CommandError:
        for name in ("password", "backup-id", "backup-time"):
            if name not in arguments:
                return CommandError(f"missing parameter '{name}'")
        return CommandError("proxmox_backup_new failed: (null)")

    def _open_target(self, monitor: Monitor | None, target: str) -> tuple[Sink, str]:
        host = self._machine.host
        if target.startswith("/dev/fdname/"):
            name = target.removeprefix("/dev/fdname/")
            fd = monitor.fds.take_named(name) if monitor else None
            if fd is None:
                raise CommandError(f"File descriptor named '{name}' has not been found")
            return host.fd_sink(fd, keep_open=False), ""
        if target.startswith("/dev/fdset/"):
            fd = self._machine.fd_sets.any_fd(target.removeprefix("/dev/fdset/"))
            if fd is None:
                raise CommandError(f"can't open file {target} - Permission denied\n")
            return host.fd_sink(fd, keep_open=True), ""
        try:
            sink = host.open_target(target)
        except OSError as error:
            raise CommandError(
                f"can't open file {target} - {os.strerror(error.errno or 0)}\n"
            ) from error
        return sink, "" if target.startswith("exec:") else target

    def _read_configs(self, arguments: Mapping[str, Any]) -> list[tuple[str, bytes]]:
        configs = []
        for key, stored_name in (
            ("config-file", "qemu-server.conf"),
            ("firewall-file", "qemu-server.fw"),
        ):
            path = arguments.get(key)
            if path is None:
                continue
            try:
                data = self._machine.host.read_file(path)
            except OSError as error:
                raise CommandError(f"unable to read file '{path}'") from error
            if len(data) > _CONFIG_BYTES_MAX:
                raise CommandError(f"unable to add {path} config data to vma archive")
            configs.append((stored_name, data))
        return configs

    # -- start ---------------------------------------------------------------------------------

    def _start_jobs(
        self,
        sink: Sink,
        chosen: list[_Chosen],
        arguments: Mapping[str, Any],
        configs: list[tuple[str, bytes]],
    ) -> dict[str, Any]:
        machine = self._machine
        sizes = [entry.node.disk.size_bytes if entry.node.disk else 0 for entry in chosen]
        if 0 in sizes[:-1]:
            machine.die("SIGABRT")
            raise CommandError("the process died")
        archive_uuid = machine.host.new_uuid()
        figures = self._new_figures(str(archive_uuid), str(arguments["backup-file"]), sum(sizes))
        self._figures = figures
        self._check_jobs_possible(arguments, chosen)
        self._die_if_twice(chosen)
        copies = [self._copy(entry, index, arguments) for index, entry in enumerate(chosen, 1)]

        def make_output(*, on_drained: Callable[[], None]) -> VmaOutput:
            return VmaOutput(sink, on_drained=on_drained)

        run = BackupRun(self._parts(figures), copies, make_output)
        if sizes[-1] == 0:
            run.output.fail("vma_writer_register_stream: got strange size 0")
        else:
            run.output.open(
                archive_uuid=archive_uuid,
                ctime_s=figures.start_s,
                configs=configs,
                devices=[(entry.name, size) for entry, size in zip(chosen, sizes, strict=True)],
            )
        self._run = run
        for entry in chosen:
            if entry.fleecing is not None:
                entry.fleecing.parents.add("backup")
        machine.keep_point_in_time([(entry.name, entry.node.disk) for entry in chosen])
        run.start()
        return {"UUID": str(archive_uuid)}

    def _new_figures(self, text: str, target: str | None, total_bytes: int) -> BackupFigures:
        return BackupFigures(
            uuid=text,
            target=target,
            start_s=int(self._machine.timebase.now_s()),
            total_bytes=total_bytes,
            dirty_bytes=total_bytes,
        )

    def _check_jobs_possible(self, arguments: Mapping[str, Any], chosen: list[_Chosen]) -> None:
        worker_count = arguments.get("max-workers", 16)
        if not 1 <= worker_count <= _WORKER_COUNT_MAX:
            raise CommandError(
                "backup_job_create failed: max-workers must be between 1 and 2147483647"
            )
        if self._machine.disks_are_inactive:
            made_up = self._machine.block.make_up_name()
            raise CommandError(
                f"backup_job_create failed: Could not create node: Inactive"
                f" '{chosen[0].node.name}' can't be a file child of active '{made_up}'"
            )

    def _die_if_twice(self, chosen: list[_Chosen]) -> None:
        names = [entry.name for entry in chosen]
        if len(set(names)) == len(names):
            return
        for status in (JobPhase.CREATED, JobPhase.ABORTING, JobPhase.CONCLUDED, JobPhase.GONE):
            self._machine.emit("JOB_STATUS_CHANGE", {"status": status.value, "id": names[0]})
        self._machine.die("SIGSEGV")
        raise CommandError("the process died")

    def _copy(self, entry: _Chosen, vma_dev_id: int, arguments: Mapping[str, Any]) -> DiskCopy:
        disk = entry.node.source.disk
        if disk is None:
            raise CommandError(f"Device '{entry.name}' has no medium")
        return DiskCopy(
            job=Job(
                job_id=entry.name,
                kind="backup",
                length_bytes=disk.size_bytes,
                speed_bytes_per_s=max(arguments.get("speed", 0), 0),
            ),
            disk=disk,
            vma_dev_id=vma_dev_id,
            fleecing=entry.fleecing.disk if entry.fleecing else None,
        )

    def _parts(self, figures: BackupFigures) -> RunParts:
        machine = self._machine
        return RunParts(
            jobs=machine.jobs,
            emit=machine.emit,
            timebase=machine.timebase,
            rules=machine.script.backup,
            figures=figures,
            on_die=lambda: machine.die("SIGKILL"),
            on_end=self._run_ended,
        )

    def _run_ended(self) -> None:
        self._run = None
        self._machine.block.release("backup")

    # -- access by another program -------------------------------------------------------------

    def access_setup(self, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        """``backup-access-setup``. Raises: CommandError."""
        machine, owner = self._machine, str(arguments["target-id"])
        self._refuse_if_active()
        if not arguments["devices"]:
            machine.die("SIGABRT")
            raise CommandError("the process died")
        chosen = []
        for entry in arguments["devices"]:
            name = str(entry["device"])
            node = machine.block.find(name)
            chosen.append(
                (_Chosen(name=name, node=node, fleecing=self._find_fleecing(name, node)), entry)
            )
        total = sum(each.node.disk.size_bytes for each, _ in chosen if each.node.disk)
        figures = self._new_figures("", None, total)
        self._figures, self._access_owner = figures, owner
        self._access_writes = {}
        replies = [self._access_reply(each, entry, figures) for each, entry in chosen]
        figures.dirty_bytes = sum(info["dirty"] for info in figures.bitmap_infos)
        figures.reused_bytes = total - figures.dirty_bytes
        return replies

    def _access_reply(
        self, chosen: _Chosen, entry: Mapping[str, Any], figures: BackupFigures
    ) -> dict[str, Any]:
        disk = chosen.node.disk
        size_bytes = disk.size_bytes if disk else 0
        key = (self._access_owner, chosen.name)
        known = self._access_bitmaps.get(key)
        mode, dirty_bytes = entry.get("bitmap-mode", "none"), size_bytes
        reply: dict[str, Any] = {
            "device": chosen.name,
            "node-name": self._keep_view(chosen),
            "size": size_bytes,
        }
        if mode == "none":
            action = "not-used" if known is None else "not-used-removed"
            self._access_bitmaps.pop(key, None)
        else:
            action = "new"
            if mode == "use":
                action = "missing-recreated" if known is None else "used"
            if action == "used" and known is not None:
                dirty_bytes = min(len(known) * _BITMAP_GRANULARITY_BYTES, size_bytes)
            count = ceil_div(size_bytes, _BITMAP_GRANULARITY_BYTES)
            if action != "used":
                self._access_bitmaps[key] = set(range(count))
            reply |= {
                "bitmap-action": action,
                "bitmap-node-name": chosen.node.name,
                "bitmap-name": self._access_owner,
            }
        figures.bitmap_infos.append(
            {"drive": chosen.name, "action": action, "size": size_bytes, "dirty": dirty_bytes}
        )
        return reply

    def _keep_view(self, chosen: _Chosen) -> str:
        """A node that shows the disk as it is now, kept by the fleecing image."""
        block = self._machine.block
        name = block.make_up_name()
        fleecing = chosen.fleecing
        if chosen.node.disk is not None and fleecing is not None and fleecing.disk is not None:
            guard = CopyBeforeWrite(chosen.node.disk, fleecing.disk, breaks_guest_write=False)
            block.add_kept_view(name, chosen.node, guard)
            self._access_views.append((name, chosen.node, guard))
        return name

    def note_write(self, device_id: str, offset_bytes: int, length_bytes: int) -> None:
        """A guest write, for the bitmaps of external backup tools."""
        first = offset_bytes // _BITMAP_GRANULARITY_BYTES
        end = ceil_div(offset_bytes + length_bytes, _BITMAP_GRANULARITY_BYTES)
        for (owner, name), dirty in self._access_bitmaps.items():
            if name != device_id:
                continue
            if owner == self._access_owner:
                self._access_writes.setdefault(name, set()).update(range(first, end))
            dirty.update(range(first, end))

    def access_remove(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """``backup-access-teardown``. Raises: CommandError."""
        owner = str(arguments["target-id"])
        if not self._access_owner or self._figures is None:
            return {}
        if owner != self._access_owner:
            raise CommandError(
                f"cannot teardown backup access - got target {owner} instead of"
                f" {self._access_owner}"
            )
        if arguments["success"]:
            for each, name in list(self._access_bitmaps):
                if each == owner:
                    self._access_bitmaps[each, name] = self._access_writes.get(name, set())
        for name, node, guard in self._access_views:
            self._machine.block.remove_kept_view(name, node, guard)
        self._access_views.clear()
        self._access_owner = ""
        self._figures.end_s = int(self._machine.timebase.now_s())
        return {}
