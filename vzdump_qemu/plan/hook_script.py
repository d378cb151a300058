"""The operator's hook script: when it is called, with what, and what its failure means; pure.

Owns arguments, the whole environment and the texts of failures; running it is an adapter's, the
order of the phases the engine's. Source: host behaviour, sections 1.8 and 2.4.
"""

from __future__ import annotations

import enum
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.events import BackupMode


class HookPhase(enum.Enum):
    """The moments at which the script is called, by the word it gets."""

    JOB_INIT = "job-init"
    JOB_START = "job-start"
    BACKUP_START = "backup-start"
    PRE_STOP = "pre-stop"
    PRE_RESTART = "pre-restart"
    POST_RESTART = "post-restart"
    BACKUP_END = "backup-end"
    BACKUP_ABORT = "backup-abort"
    LOG_END = "log-end"
    JOB_END = "job-end"
    JOB_ABORT = "job-abort"

    @property
    def is_of_job(self) -> bool:
        """Whether the call is about the whole job and not about one VM."""
        return self in _JOB_PHASES


_JOB_PHASES = frozenset(
    (HookPhase.JOB_INIT, HookPhase.JOB_START, HookPhase.JOB_END, HookPhase.JOB_ABORT)
)
# What the platform's own runner of programs adds to any environment.
_RUNNER_VARIABLES = (("LC_ALL", "C"), ("LVM_SUPPRESS_FD_WARNINGS", "1"))


class HookFailure(enum.Enum):
    """What a failed call means.

    Attributes:
        JOB: the job fails.
        RUN: the VM's run fails; an archive that is complete stays.
        PRINTED: it is told, and changes no outcome; after a failed ``pre-restart`` the guest is
            put back all the same, but ``post-restart`` is left out.
        WARNED: a warning.
        APPENDED: it is added to the job's error.
    """

    JOB = enum.auto()
    RUN = enum.auto()
    PRINTED = enum.auto()
    WARNED = enum.auto()
    APPENDED = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class HookFacts:
    """What is known at the moment of a call; empty texts are not known yet, or do not apply.

    Attributes:
        storage_id: of the target, if it is a storage.
        dump_directory: of a file target; in ``job-init`` only if the operator gave one.
        mode: effective mode of the run, or the requested one before it was determined.
        vmid: None in the phases of a job.
        vm_type: empty for a VM that does not exist.
        vm_name: from the VM's configuration, once that was read.
        target: path of the archive, name of the PBS snapshot, or ``-``.
        log_path: of the log beside the archive.
    """

    storage_id: str = ""
    dump_directory: str = ""
    mode: BackupMode = BackupMode.SNAPSHOT
    vmid: int | None = None
    vm_type: str = "qemu"
    vm_name: str = ""
    target: str = ""
    log_path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HookCall:
    """One call of the script.

    Attributes:
        argv: the script itself and its arguments; no shell.
        environment: all of it, nothing is inherited.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]


def check_hook_script(path: str, *, is_file: bool, is_executable: bool) -> None:
    """Refuse a script that could not be called.

    Raises: ConfigError if its path is not absolute, or it is no file, or not executable.
    """
    if not path.startswith("/"):
        raise ConfigError(
            f"Error: The path of the hook script '{path}' is not absolute.",
            hint="jobs run from any directory: give the whole path",
        )
    if not is_file:
        raise ConfigError(
            f"Error: The hook script '{path}' does not exist.",
            hint="name a file of this host with --script PATH",
        )
    if not is_executable:
        raise ConfigError(
            f"Error: The hook script '{path}' is not executable.",
            hint=f"chmod +x {shlex.quote(path)}",
        )


def make_hook_call(script: str, phase: HookPhase, facts: HookFacts) -> HookCall:
    """The arguments and the environment of one call."""
    variables = {"STOREID": facts.storage_id, "DUMPDIR": facts.dump_directory}
    argv: tuple[str, ...] = (script, phase.value)
    if not phase.is_of_job:
        argv = (*argv, facts.mode.value, str(facts.vmid))
        variables |= {
            "VMTYPE": facts.vm_type,
            "HOSTNAME": facts.vm_name,
            "TARGET": facts.target,
            "LOGFILE": facts.log_path,
        }
    known = {name: value for name, value in variables.items() if value}
    return HookCall(argv=argv, environment={**known, **dict(_RUNNER_VARIABLES)})


def hook_failure_effect(phase: HookPhase, mode: BackupMode) -> HookFailure:
    """What it means that the script failed in a phase of a run in that mode."""
    match phase:
        case HookPhase.JOB_INIT | HookPhase.JOB_START | HookPhase.JOB_END:
            return HookFailure.JOB
        case HookPhase.BACKUP_START | HookPhase.PRE_STOP | HookPhase.BACKUP_END:
            return HookFailure.RUN
        case HookPhase.PRE_RESTART | HookPhase.POST_RESTART:
            # In snapshot mode they come before the backup, otherwise when all is over.
            return HookFailure.RUN if mode is BackupMode.SNAPSHOT else HookFailure.PRINTED
        case HookPhase.BACKUP_ABORT | HookPhase.LOG_END:
            return HookFailure.WARNED
        case HookPhase.JOB_ABORT:
            return HookFailure.APPENDED
        case _:
            assert_never(phase)


def render_hook_failure(call: HookCall, status: int | None) -> str:
    """The text of a failed call.

    Args:
        status: exit status; negative for a signal that ended the script, None if it was ended
            because its time was over.
    """
    command = f"command '{shlex.join(call.argv)}' failed: "
    if status is None:
        return command + "got timeout"
    if status < 0:
        return f"{command}got signal {-status}"
    return f"{command}exit code {status}"
