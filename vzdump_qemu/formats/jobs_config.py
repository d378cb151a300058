"""Jobs that a scheduler runs: sections ``vzdump: ID`` of ``jobs.cfg``.

Owns which keys a job has and what vzdump's own options may hold. Options of this tool alone are
kept as they are written, and so is a key that nobody knows: the caller judges them. Sections of
other types are left alone. Source: host behaviour, sections 2.1, 2.2 and 5.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.formats.property_string import parse_boolean
from vzdump_qemu.formats.section_config import Section, SectionLine, split_sections
from vzdump_qemu.formats.vzdump_conf import OPTION_RULES, OptionKind, check_option

JOBS_PATH = "/etc/pve/jobs.cfg"
_TYPE = "vzdump"
_BOOLEAN_KEYS = frozenset(("enabled", "repeat-missed"))
# What the scheduler alone reads: the id again, and the times of jobs that were written in 2020.
_SCHEDULER_KEYS = frozenset(("id", "type", "starttime", "dow"))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOption:
    """The value of one option, and the line it was read from."""

    value: str
    line_number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupJob:
    """One section.

    Attributes:
        path: of the file, as it was named by the caller.
        options: by name, in the file's order; those of vzdump are checked.
        schedule: calendar event as it is written; empty if there is none.
        repeats_missed: whether a time that passed while the host was off is made up for.
        errors: what makes the job other than it was meant; it must not run.
        warnings: what is ignored.
    """

    job_id: str
    path: str
    line_number: int
    options: Mapping[str, JobOption]
    enabled: bool = True
    schedule: str = ""
    comment: str = ""
    repeats_missed: bool = False
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsConfig:
    """All jobs by id, in the file's order, and what belongs to none of them."""

    jobs: Mapping[str, BackupJob]
    warnings: tuple[str, ...]


def parse_jobs_config(raw: bytes, *, path: str = JOBS_PATH) -> JobsConfig:
    """Read ``jobs.cfg``; what is wrong is told by the jobs themselves, with file and line.

    Args:
        path: how texts name the file.
    """
    jobs: dict[str, BackupJob] = {}
    warnings: list[str] = []
    for part in split_sections(raw):
        if isinstance(part, SectionLine):
            warnings.append(f"'{path}' line {part.number}: ignore config line: {part.text}")
        elif part.type != _TYPE:
            continue
        elif part.section_id in jobs:
            warnings.append(
                f"'{path}' line {part.number}: duplicate section '{part.section_id}' is ignored"
            )
        else:
            jobs[part.section_id] = _read_job(part, path)
    return JobsConfig(jobs=jobs, warnings=tuple(warnings))


def _read_job(section: Section, path: str) -> BackupJob:
    texts = {"schedule": "", "comment": ""}
    switches = {"enabled": True, "repeat-missed": False}
    options: dict[str, JobOption] = {}
    errors: list[str] = []
    warnings: list[str] = []
    seen: set[str] = set()
    for line in section.lines:
        where = f"'{path}' line {line.number}"
        if not line.key:
            # Mostly a header without the empty line before it: what follows is another job's.
            errors.append(f"{where}: '{line.text}' does not belong to a section")
        elif line.key in seen:
            warnings.append(f"{where}: duplicate attribute '{line.key}' is ignored")
        else:
            seen.add(line.key)
            try:
                if line.key in _BOOLEAN_KEYS:
                    switches[line.key] = parse_boolean(line.value or "1")
                elif line.key in texts:
                    texts[line.key] = line.value
                elif line.key not in _SCHEDULER_KEYS:
                    value = _check_value(line)
                    options[line.key] = JobOption(value=value, line_number=line.number)
            except ConfigError as error:
                errors.append(f"{where}: {line.key}: {error.message}")
    return BackupJob(
        job_id=section.section_id,
        path=path,
        line_number=section.number,
        options=options,
        enabled=switches["enabled"],
        schedule=texts["schedule"],
        comment=texts["comment"],
        repeats_missed=switches["repeat-missed"],
        errors=tuple(errors),
        warnings=tuple(warnings),
    )


def _check_value(line: SectionLine) -> str:
    rule = OPTION_RULES.get(line.key)
    if rule is None:
        return line.value
    if rule.kind is OptionKind.BOOLEAN:
        return check_option(line.key, line.value or "1")
    return check_option(line.key, line.value)
