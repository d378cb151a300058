"""Names of archives and of the files around them; pure.

Owns how names are made and recognised. Source: host behaviour, sections 1.7 (steps 4 to 9) and
2.8.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

TIME_FORMAT = "%Y_%m_%d-%H_%M_%S"
FALLBACK_TEMP_DIRECTORY = "/var/tmp"
_ANY_ARCHIVE = re.compile(r"vzdump-(lxc|openvz|qemu)-.+\.(tgz|((tar|vma)(\.(gz|lzo|zst|bz2))?))\Z")
_STANDARD = re.compile(
    r"vzdump-(?P<type>lxc|openvz|qemu)-(?P<vmid>[1-9][0-9]{2,8})-"
    r"(?P<time>[0-9]{4}_[0-9]{2}_[0-9]{2}-[0-9]{2}_[0-9]{2}_[0-9]{2})"
    r"\.(tgz|((tar|vma)(\.(gz|lzo|zst|bz2))?))\Z"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunNames:
    """All paths of one run; those of the archive are empty for standard output.

    Attributes:
        final_path: the archive's name once it was proved.
        temp_path: its name until then; never looks like an archive.
        side_log_path: the log beside the archive.
        temp_directory: the run's own files.
    """

    final_path: str
    temp_path: str
    side_log_path: str
    temp_directory: str


def name_run(
    *,
    vmid: int,
    local_time: datetime,
    dump_directory: str,
    temp_directory: str,
    extension: str,
    process_id: int,
) -> RunNames:
    """Name everything one run writes.

    Args:
        local_time: of the start, in the node's zone.
        dump_directory: empty for standard output.
        temp_directory: the operator's choice, or empty for beside the archive.
        extension: of the compressor with its dot, or empty.
    """
    base = f"vzdump-qemu-{vmid}-{local_time.strftime(TIME_FORMAT)}"
    # The process id and the VM's id keep two runs, and a run's left-overs, apart.
    private = f"vzdumptmp{process_id}_{vmid}"
    if temp_directory:
        own_directory = f"{temp_directory}/{private}"
    elif dump_directory:
        own_directory = f"{dump_directory}/{base}.tmp"
    else:
        own_directory = f"{FALLBACK_TEMP_DIRECTORY}/{private}"
    if not dump_directory:
        return RunNames(final_path="", temp_path="", side_log_path="", temp_directory=own_directory)
    stem = f"{dump_directory}/{base}"
    return RunNames(
        final_path=f"{stem}.vma{extension}",
        temp_path=f"{stem}.vma.dat" if extension else f"{stem}.dat",
        side_log_path=f"{stem}.log",
        temp_directory=own_directory,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StandardName:
    """What a standard archive name tells: guest type, VM and local time of the start."""

    guest_type: str
    vmid: int
    local_time: datetime


def is_archive_name(name: str) -> bool:
    """Whether a base name is that of a vzdump archive of any kind."""
    return _ANY_ARCHIVE.match(name) is not None


def parse_standard_name(name: str) -> StandardName | None:
    """Read a standard base name; None for a renamed or foreign file."""
    found = _STANDARD.match(name)
    if found is None:
        return None
    try:
        # Many times as fast as strptime, and a year of hourly archives has many names.
        year, month, day, hour, minute, second = (
            int(digits) for digits in found["time"].replace("-", "_").split("_")
        )
        local_time = datetime(year, month, day, hour, minute, second)
    except ValueError:
        return None
    return StandardName(guest_type=found["type"], vmid=int(found["vmid"]), local_time=local_time)


def side_log_name(archive_name: str) -> str:
    """The log beside an archive: its extension replaced."""
    return re.sub(r"\.(tgz|((tar|vma)(\.(gz|lzo|zst|bz2))?))\Z", ".log", archive_name)


def notes_name(archive_name: str) -> str:
    """The file that holds an archive's notes."""
    return f"{archive_name}.notes"


def protection_name(archive_name: str) -> str:
    """The empty file that protects an archive from removal."""
    return f"{archive_name}.protected"
