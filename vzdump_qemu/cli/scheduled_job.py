"""Jobs of ``jobs.cfg`` as command lines: what ``--job ID`` stands for.

Owns in which files jobs are looked for, and how a job's options and those of the command line are
joined. The grammar is `formats.jobs_config`'s; vzdump.conf and defaults come later, as for any
command line. Source: host behaviour, sections 1.1 and 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from vzdump_qemu.cli.effective import SERVER_NAMES
from vzdump_qemu.cli.vzdump_arguments import find_option
from vzdump_qemu.errors import ConfigError
from vzdump_qemu.formats.jobs_config import (
    JOBS_PATH,
    BackupJob,
    JobOption,
    JobsConfig,
    parse_jobs_config,
)

OWN_JOBS_PATH = "/etc/vzdump-qemu/jobs.cfg"
"""Jobs that the platform's own scheduler knows nothing of; also where there is no platform."""

_SELECTION_NAMES = ("vmid", "all", "exclude", "pool", "qmp")
_TARGET_NAMES = frozenset(("storage", "dumpdir", "stdout", "repository"))
# They say where the job is read from, or where its output goes: the command line's alone.
_FOREIGN_NAMES = ("root", "job", "stdout", "stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobWords:
    """A job as a command line has it.

    Attributes:
        vmids: words of the list of VMIDs.
        given: options by name; the command line's own win.
        warnings: what the file says in vain.
    """

    vmids: tuple[str, ...]
    given: dict[str, Any]
    warnings: tuple[str, ...]


def read_jobs(root: str) -> tuple[JobsConfig, ...]:
    """The files of jobs below a root, our own first; one that is not there is left out.

    Raises: ConfigError for a file that cannot be read.
    """
    configs = []
    for path in (OWN_JOBS_PATH, JOBS_PATH):
        full_path = f"{root.rstrip('/')}{path}"
        try:
            with open(full_path, "rb") as file:
                configs.append(parse_jobs_config(file.read(), path=full_path))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ConfigError(f"unable to read '{full_path}' - {error.strerror}") from error
    return tuple(configs)


def list_jobs(configs: tuple[JobsConfig, ...]) -> tuple[BackupJob, ...]:
    """Every job; of two with one id the first, as `find_job` does."""
    jobs: dict[str, BackupJob] = {}
    for config in configs:
        for job in config.jobs.values():
            jobs.setdefault(job.job_id, job)
    return tuple(jobs.values())


def find_job(root: str, job_id: str) -> BackupJob:
    """The job of that id.

    Raises: ConfigError if there is none, with the ids that there are.
    """
    configs = read_jobs(root)
    jobs = {job.job_id: job for job in list_jobs(configs)}
    if job_id in jobs:
        return jobs[job_id]
    problems = [text for config in configs for text in config.warnings]
    problems += [text for job in jobs.values() for text in job.errors]
    hint = f"jobs are: {', '.join(jobs)}" if jobs else f"neither {OWN_JOBS_PATH} nor {JOBS_PATH}"
    if not jobs:
        hint += " has any"
    raise ConfigError(f"job '{job_id}' does not exist", hint="; ".join([hint, *problems]))


def refuse_disabled(job: BackupJob, *, quiet: bool) -> bool:
    """Whether the job is not to run; said on stderr unless `quiet`."""
    if not job.enabled and not quiet:
        where = f"'{job.path}' line {job.line_number}"
        click.echo(f"job '{job.job_id}' is not enabled ({where}): nothing was done", err=True)
    return not job.enabled


def join_job(job: BackupJob, vmids: tuple[str, ...], given: Mapping[str, Any]) -> JobWords:
    """A job run with what the command line adds; quiet, as a scheduler runs it, unless told else.

    VMs named by the command line stand for all that the job selects, and so does a target.

    Raises: ConfigError for a job that cannot be run as it was meant.
    """
    warnings = list(job.warnings)
    errors = list(job.errors)
    options = _convert_all(job, errors, warnings)
    if errors:
        raise ConfigError(
            f"job '{job.job_id}' cannot be run: {errors[0]}", hint="; ".join(errors[1:])
        )
    if vmids or any(given.get(name) for name in _SELECTION_NAMES):
        options = {name: value for name, value in options.items() if name not in _SELECTION_NAMES}
    if any(given.get(name) for name in _TARGET_NAMES):
        # What belongs to another place says nothing of this one.
        dropped = {*_TARGET_NAMES, *SERVER_NAMES, *(["compress"] if "repository" in given else [])}
        options = {name: value for name, value in options.items() if name not in dropped}
    if "qmp" not in {*options, *given}:
        # Without a socket it is a list, and no option.
        vmids = vmids or tuple(options.pop("vmid", ()))
    quiet = {} if "output" in given else {"quiet": True}
    return JobWords(
        vmids=vmids,
        given={**options, **quiet, "job-id": job.job_id, **given},
        warnings=tuple(warnings),
    )


def _convert_all(job: BackupJob, errors: list[str], warnings: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, option in job.options.items():
        where = f"'{job.path}' line {option.line_number}"
        if name == "vmid" and "qmp" not in job.options:
            values[name] = (option.value,)
            continue
        if find_option(name) is None or name in _FOREIGN_NAMES:
            warnings.append(f"{where}: ignoring '{name}' - no option of a job")
            continue
        try:
            values[name] = _convert(name, option)
        except click.UsageError as error:
            errors.append(f"{where}: {name}: {error.message}")
    return values


def _convert(name: str, option: JobOption) -> Any:
    spec = find_option(name)
    assert spec is not None
    text = option.value or ("1" if spec.is_boolean else "")
    if not text:
        raise click.UsageError("value is missing")
    value = spec.type.convert(text, None, None)
    return (value,) if spec.is_list else value
