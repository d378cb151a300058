"""The commands that the Proxmox build adds: checks, start and state of backups.

Owns the order of the checks (device list, then target, then configuration files, then jobs),
because it decides what stays behind after a failure. The copying is `backup_run`'s, what a server
is asked before the jobs `pbs_start`'s.
Source: PVE interface, sections 2 to 8.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from vzdump_qemu.formats.pbs.layout import CHUNK_BYTES
from vzdump_qemu.formats.vma.layout import VMA_CLUSTER_BYTES
from vzsim.fakeqmp.backup_access import BackupAccess
from vzsim.fakeqmp.backup_devices import ChosenDevice, choose_devices
from vzsim.fakeqmp.backup_run import BackupRun, DiskCopy, RunParts
from vzsim.fakeqmp.backup_state import BackupFigures, describe
from vzsim.fakeqmp.jobs import Job, JobPhase
from vzsim.fakeqmp.outside import Sink
from vzsim.fakeqmp.pbs_output import PbsOutput
from vzsim.fakeqmp.pbs_port import LIBRARY_VERSION, LoadLibrary, PbsLibrary
from vzsim.fakeqmp.pbs_start import PbsStart
from vzsim.fakeqmp.replies import Pending
from vzsim.fakeqmp.schema import CommandError
from vzsim.fakeqmp.vma_output import VmaOutput

if TYPE_CHECKING:
    from vzsim.fakeqmp.machine import Machine
    from vzsim.fakeqmp.monitor import Monitor

_OWNER = "Proxmox"
_CONFIG_BYTES_MAX = 65535
_WORKER_COUNT_MAX = 2**31 - 1

_FEATURES = (
    "query-bitmap-info",
    "pbs-dirty-bitmap-savevm",
    "pbs-dirty-bitmap",
    "backup-access-api",
    "pbs-masterkey",
    "backup-fleecing",
    "pbs-dirty-bitmap-migration",
    "backup-max-workers",
)


class BackupService:
    """Backups of one machine.

    Args:
        load_pbs_library: None for a build whose library is a stub.
    """

    def __init__(self, machine: Machine, load_pbs_library: LoadLibrary | None) -> None:
        self._machine = machine
        self._load_pbs_library = load_pbs_library
        self._pbs_library: PbsLibrary | None = None
        self._figures: BackupFigures | None = None
        self._run: BackupRun | None = None
        self._start: PbsStart | None = None
        # Of each device, as this process sent it last to a backup server.
        self._index_csums: dict[str, bytes] = {}
        self._access = BackupAccess(machine)

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

    def query_support(self) -> dict[str, Any]:
        """Reply of ``query-proxmox-support``."""
        version = "" if self._load_pbs_library is None else LIBRARY_VERSION
        return {**dict.fromkeys(_FEATURES, True), "pbs-library-version": version}

    def cancel(self) -> Pending | dict[str, Any]:
        """``backup-cancel``: succeeds also when nothing runs; a success becomes an error."""
        if self._start is not None:
            self._start.abort()
            return {}
        if self._run is not None:
            pending = Pending()
            self._run.cancel(lambda: pending.resolve({}))
            return pending
        # A failed start leaves the figures without an end; a cancel does not change them.
        is_stuck = self._figures is not None and self._figures.status == "active"
        if self._figures is not None and (not is_stuck or self._access.owner):
            self._figures.record_error("backup canceled")
        return {}

    def stop_for_exit(self, done: Callable[[], None]) -> None:
        """End a running backup because the process ends; waits for a full pipe."""
        if self._start is not None:
            self._start.abort()
        if self._run is None:
            done()
        else:
            self._run.cancel(done)

    def die_quietly(self) -> None:
        """The process is gone, and its connections with it."""
        if self._start is not None:
            self._start.abort()
        if self._run is not None:
            self._run.die_quietly()

    def start(
        self, monitor: Monitor | None, arguments: Mapping[str, Any]
    ) -> dict[str, Any] | Pending:
        """``backup``; the reply comes later if a server has to be asked.

        Raises: CommandError. Inputs that kill the real process kill this one.
        """
        self._refuse_if_active()
        chosen = choose_devices(
            self._machine,
            arguments.get("devlist"),
            fleecing=bool(arguments.get("fleecing", False)),
        )
        if arguments.get("format", "vma") == "pbs":
            return self._start_at_server(chosen, arguments)
        target = str(arguments["backup-file"])
        sink, created_path = self._open_target(monitor, target)
        try:
            configs = self._read_configs(arguments)
            return self._start_vma_jobs(sink, chosen, arguments, configs)
        except CommandError:
            sink.close()
            if created_path:
                self._machine.host.remove_target(created_path)
            raise

    def note_write(self, device_id: str, offset_bytes: int, length_bytes: int) -> None:
        """A guest write, for the bitmaps of external backup tools."""
        self._access.note_write(device_id, offset_bytes, length_bytes)

    def access_setup(self, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        """``backup-access-setup``. Raises: CommandError."""
        self._refuse_if_active()
        self._figures, replies = self._access.set_up(arguments)
        return replies

    def access_remove(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """``backup-access-teardown``. Raises: CommandError."""
        if self._access.remove(arguments) and self._figures is not None:
            self._figures.end_s = int(self._machine.timebase.now_s())
        return {}

    # -- checks --------------------------------------------------------------------------------

    def _refuse_if_active(self) -> None:
        is_active = self._run is not None or self._start is not None
        owner = self._access.owner or (_OWNER if is_active else "")
        if owner:
            raise CommandError(f"previous backup for target '{owner}' not finished")

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

    def _start_vma_jobs(
        self,
        sink: Sink,
        chosen: list[ChosenDevice],
        arguments: Mapping[str, Any],
        configs: list[tuple[str, bytes]],
    ) -> dict[str, Any]:
        sizes = [entry.node.size_bytes for entry in chosen]
        if 0 in sizes[:-1]:
            self._machine.die("SIGABRT")
            raise CommandError("the process died")
        figures = self._begin_figures(arguments, chosen)
        copies = [
            self._copy(entry, index, arguments, piece_bytes=VMA_CLUSTER_BYTES)
            for index, entry in enumerate(chosen, 1)
        ]

        def make_output(*, on_drained: Callable[[], None]) -> VmaOutput:
            output = VmaOutput(sink, on_drained=on_drained)
            if sizes[-1] == 0:
                output.fail("vma_writer_register_stream: got strange size 0")
            else:
                output.open(
                    archive_uuid=UUID(figures.uuid),
                    ctime_s=figures.start_s,
                    configs=configs,
                    devices=[(entry.name, size) for entry, size in zip(chosen, sizes, strict=True)],
                )
            return output

        self._begin(BackupRun(self._parts(figures), copies, make_output), chosen)
        return {"UUID": figures.uuid}

    def _start_at_server(self, chosen: list[ChosenDevice], arguments: Mapping[str, Any]) -> Pending:
        if self._pbs_library is None and self._load_pbs_library is not None:
            self._pbs_library = self._load_pbs_library()
        start = PbsStart(
            self._pbs_library,
            self._machine.host,
            arguments,
            [(entry.name, entry.node.source) for entry in chosen],
            self._index_csums,
        )
        pending = Pending()

        async def begin() -> None:
            outcome: dict[str, Any] | CommandError
            try:
                await start.connect()
                outcome = self._start_server_jobs(start, chosen, arguments)
            except CommandError as error:
                start.abort()
                outcome = error
            finally:
                self._start = None
            pending.resolve(outcome)

        self._start = start
        start.target.library.spawn(begin())
        return pending

    def _start_server_jobs(
        self, start: PbsStart, chosen: list[ChosenDevice], arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        if self._machine.is_dead:
            raise CommandError("the process died")
        figures = self._begin_figures(arguments, chosen)
        figures.bitmap_infos = start.bitmap_infos
        figures.dirty_bytes = start.dirty_bytes
        figures.reused_bytes = figures.total_bytes - figures.dirty_bytes
        copies = []
        for index, entry in enumerate(chosen, 1):
            copy = self._copy(entry, index, arguments, piece_bytes=CHUNK_BYTES)
            copy.clean = start.clean_chunks(entry.node.source)
            copy.job.length_bytes = copy.unclean_bytes
            copies.append(copy)

        def make_output(*, on_drained: Callable[[], None]) -> PbsOutput:
            return PbsOutput(start.target, figures, on_drained=on_drained)

        def jobs_ended(succeeded: bool) -> None:
            start.give_back(succeeded=succeeded)

        self._begin(BackupRun(self._parts(figures, jobs_ended), copies, make_output), chosen)
        return {"UUID": figures.uuid}

    def _begin(self, run: BackupRun, chosen: list[ChosenDevice]) -> None:
        self._run = run
        for entry in chosen:
            if entry.fleecing is not None:
                entry.fleecing.parents.add("backup")
        self._machine.keep_point_in_time([(entry.name, entry.node.disk) for entry in chosen])
        run.start()

    def _begin_figures(
        self, arguments: Mapping[str, Any], chosen: list[ChosenDevice]
    ) -> BackupFigures:
        """Figures of a backup whose jobs are made next. Raises: CommandError; they stay then."""
        figures = self._new_figures(
            str(self._machine.host.new_uuid()),
            str(arguments["backup-file"]),
            sum(entry.node.size_bytes for entry in chosen),
        )
        self._figures = figures
        self._check_jobs_possible(arguments, chosen)
        self._die_if_twice(chosen)
        return figures

    def _new_figures(self, text: str, target: str | None, total_bytes: int) -> BackupFigures:
        return BackupFigures(
            uuid=text,
            target=target,
            start_s=int(self._machine.timebase.now_s()),
            total_bytes=total_bytes,
            dirty_bytes=total_bytes,
        )

    def _check_jobs_possible(
        self, arguments: Mapping[str, Any], chosen: list[ChosenDevice]
    ) -> None:
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

    def _die_if_twice(self, chosen: list[ChosenDevice]) -> None:
        names = [entry.name for entry in chosen]
        if len(set(names)) == len(names):
            return
        for status in (JobPhase.CREATED, JobPhase.ABORTING, JobPhase.CONCLUDED, JobPhase.GONE):
            self._machine.emit("JOB_STATUS_CHANGE", {"status": status.value, "id": names[0]})
        self._machine.die("SIGSEGV")
        raise CommandError("the process died")

    def _copy(
        self,
        entry: ChosenDevice,
        dev_number: int,
        arguments: Mapping[str, Any],
        *,
        piece_bytes: int,
    ) -> DiskCopy:
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
            dev_number=dev_number,
            piece_bytes=piece_bytes,
            fleecing=entry.fleecing.disk if entry.fleecing else None,
        )

    def _parts(
        self,
        figures: BackupFigures,
        on_jobs_end: Callable[[bool], None] = lambda _succeeded: None,
    ) -> RunParts:
        machine = self._machine
        return RunParts(
            jobs=machine.jobs,
            emit=machine.emit,
            timebase=machine.timebase,
            rules=machine.script.backup,
            figures=figures,
            on_die=lambda: machine.die("SIGKILL"),
            on_jobs_end=on_jobs_end,
            on_end=self._run_ended,
        )

    def _run_ended(self) -> None:
        self._run = None
        self._machine.block.release("backup")
