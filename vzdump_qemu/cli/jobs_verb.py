"""The verb ``jobs``: what ``--job`` can be told to do, and times for systemd's timers.

Owns what is printed. When a job comes next is left to systemd, which knows when it ran last.
"""

from __future__ import annotations

from typing import Any

import click

from vzdump_qemu.cli.reporting import json_option, print_json, print_table
from vzdump_qemu.errors import ConfigError
from vzdump_qemu.formats.jobs_config import BackupJob

_SELECTIONS = {"vmid": "", "qmp": "", "pool": "pool ", "exclude": "all but "}
_TARGETS = ("storage", "dumpdir", "repository")


@click.command("jobs")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False),
    default="/",
    metavar="DIR",
    help="the node: / for this host, or the folder of a lab.  [default: /]",
)
@click.option("--systemd", "timer_of", metavar="ID", help="print this job's times for its timer.")
@json_option
def jobs_command(root: str, *, timer_of: str | None, as_json: bool) -> None:
    """List the jobs of /etc/vzdump-qemu/jobs.cfg and /etc/pve/jobs.cfg, or print a timer's times.

    The times belong into /etc/systemd/system/vzdump-qemu@ID.timer.d/schedule.conf.
    """
    from vzdump_qemu.cli.scheduled_job import find_job, list_jobs, read_jobs

    if timer_of is not None:
        click.echo(_render_timer(find_job(root, timer_of)), nl=False)
        return
    configs = read_jobs(root)
    jobs = list_jobs(configs)
    if as_json:
        print_json([_describe(job) for job in jobs])
    else:
        rows = [
            (
                job.job_id,
                "yes" if job.enabled else "no",
                job.schedule or "-",
                _selection(job),
                _target(job),
                job.comment,
            )
            for job in jobs
        ]
        print_table(("JOB", "ENABLED", "SCHEDULE", "VMS", "TARGET", "COMMENT"), rows)
    for text in [text for config in configs for text in config.warnings]:
        click.echo(f"WARN: {text}", err=True)
    for job in jobs:
        for text in (*job.errors, *job.warnings):
            click.echo(f"WARN: {text}", err=True)


def _render_timer(job: BackupJob) -> str:
    from vzdump_qemu.formats.calendar_event import translate_calendar_event

    if not job.schedule:
        raise ConfigError(
            f"job '{job.job_id}' has no schedule",
            hint=f"'{job.path}' line {job.line_number}: a line like 'schedule mon..fri 22:00'",
        )
    return (
        f"# Job '{job.job_id}' of {job.path}: {job.schedule}\n"
        "[Timer]\n"
        "OnCalendar=\n"
        f"OnCalendar={translate_calendar_event(job.schedule)}\n"
        f"Persistent={'true' if job.repeats_missed else 'false'}\n"
    )


def _describe(job: BackupJob) -> dict[str, Any]:
    return {
        "job": job.job_id,
        "path": job.path,
        "enabled": job.enabled,
        "schedule": job.schedule,
        "repeat_missed": job.repeats_missed,
        "comment": job.comment,
        "options": {name: option.value for name, option in job.options.items()},
        "errors": job.errors,
        "warnings": job.warnings,
    }


def _selection(job: BackupJob) -> str:
    for name, prefix in _SELECTIONS.items():
        if name in job.options:
            return prefix + job.options[name].value
    return "all" if "all" in job.options else "-"


def _target(job: BackupJob) -> str:
    return next((job.options[name].value for name in _TARGETS if name in job.options), "-")
