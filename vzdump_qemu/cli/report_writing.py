"""The page of ``--report``: made once a job ended, however it ended.

Owns what is looked up for it beside the record of the job (the backups that stand in the target)
and that none of this can harm the job: what goes wrong is one warning. The page itself is
`plan.report_page`'s.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial
from importlib.metadata import version

from vzdump_qemu.errors import BackupError
from vzdump_qemu.outlets.report_file import write_report_file
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.plan.batch_record import JobRecord
from vzdump_qemu.plan.names import parse_standard_name
from vzdump_qemu.plan.report_page import ReportFacts, render_report
from vzdump_qemu.plan.report_table import PastBackup
from vzdump_qemu.stores.dump_directory import DumpDirectory
from vzdump_qemu.stores.system import SystemClock, run_blocking

FindDirectories = Callable[[], Iterable[str]]
"""Where archives were to go, as the job's options say. Raises BackupError."""

FindServer = Callable[[], PbsTarget]
"""The backup server that the job's options name. Raises BackupError."""

Past = Mapping[int, tuple[PastBackup, ...]]

# A page without past sizes is worth more than one that is not there.
_LOOK_TIMEOUT_S = 30.0
_WRITE_TIMEOUT_S = 60.0
_GUEST_TYPE = "qemu"


async def write_report(
    path: str,
    record: JobRecord,
    *,
    find_directories: FindDirectories,
    find_server: FindServer,
) -> str:
    """Write the page; return what went wrong, as the text of a warning, else nothing.

    Args:
        record: of the ended job.
        find_directories: asked only if no VM came so far as to tell.
        find_server: asked only if the backups went to one.
    """
    look = partial(_find_past, record, find_directories, find_server)
    past: Past = {}
    with suppress(TimeoutError, BackupError):
        async with asyncio.timeout(_LOOK_TIMEOUT_S):
            past = await run_blocking(look)
    clock = SystemClock()
    facts = ReportFacts(
        job=record,
        local_time=clock.local_time,
        zone=datetime.fromtimestamp(clock.wall_s()).astimezone().tzname() or "",
        program=f"vzdump-qemu {version('vzdump-qemu')}",
        past=past,
    )
    write = partial(write_report_file, os.path.abspath(path), render_report(facts))
    try:
        async with asyncio.timeout(_WRITE_TIMEOUT_S):
            await run_blocking(write)
    except TimeoutError:
        return f"unable to write report '{path}' - got timeout"
    except BackupError as error:
        return f"no report - {error}"
    return ""


def _find_past(
    record: JobRecord, find_directories: FindDirectories, find_server: FindServer
) -> Past:
    """The backups of the job's VMs beside the new ones; a VM without any has an empty entry.

    Empty altogether where nobody knows where they would be. Raises BackupError.
    """
    locations = [run.location for run in record.runs if run.location]
    if any(not location.startswith("/") for location in locations):
        found = _at_server(find_server())
    else:
        directories = {os.path.dirname(location) for location in locations}
        directories = directories or set(find_directories())
        if not directories:
            return {}
        found = _in_directories(directories)
    vmids = sorted({run.vmid for run in record.runs})
    return {vmid: tuple(backup for owner, backup in found if owner == vmid) for vmid in vmids}


def _in_directories(directories: set[str]) -> list[tuple[int, PastBackup]]:
    found = []
    for directory in sorted(directories):
        for one in DumpDirectory(directory).list_archives():
            name = parse_standard_name(one.name)
            if name is not None and name.guest_type == _GUEST_TYPE:
                backup = PastBackup(
                    name=one.name, local_time=name.local_time, size_bytes=one.size_bytes
                )
                found.append((name.vmid, backup))
    return found


def _at_server(target: PbsTarget) -> list[tuple[int, PastBackup]]:
    # Loaded late: a job into a directory does not wait for what a server needs.
    from vzdump_qemu.stores.pbs.server_backup import list_server_backups

    found = []
    for one in list_server_backups(target, clock=SystemClock()):
        backup_id = one.backup.backup_group.backup_id
        if backup_id.isdecimal() and one.size_bytes is not None:
            backup = PastBackup(
                name=one.backup.path,
                local_time=datetime.fromtimestamp(one.backup.backup_time_s),
                size_bytes=one.size_bytes,
            )
            found.append((int(backup_id), backup))
    return found
