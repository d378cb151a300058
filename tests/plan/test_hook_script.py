"""Hook scripts: arguments, the whole environment, failures; host behaviour 1.8 and 2.4."""

from __future__ import annotations

import pytest

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.events import BackupMode
from vzdump_qemu.plan.hook_script import (
    HookFacts,
    HookFailure,
    HookPhase,
    check_hook_script,
    hook_failure_effect,
    make_hook_call,
    render_hook_failure,
)

SCRIPT = "/usr/local/bin/hook.sh"
RUNNER = {"LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1"}
ARCHIVE = "/var/lib/vz/dump/vzdump-qemu-100-2026_01_02-03_04_05.vma.zst"
LOG = "/var/lib/vz/dump/vzdump-qemu-100-2026_01_02-03_04_05.log"
GUEST_PHASES = [phase for phase in HookPhase if not phase.is_of_job]
JOB_PHASES = [phase for phase in HookPhase if phase.is_of_job]


def test_phases_are_those_of_2_4() -> None:
    assert {phase.value for phase in JOB_PHASES} == {
        *("job-init", "job-start", "job-end", "job-abort"),
    }
    assert {phase.value for phase in GUEST_PHASES} == {
        *("backup-start", "pre-stop", "pre-restart", "post-restart", "backup-end"),
        *("backup-abort", "log-end"),
    }


def _facts(mode: BackupMode) -> HookFacts:
    return HookFacts(
        storage_id="local",
        dump_directory="/var/lib/vz/dump",
        mode=mode,
        vmid=100,
        vm_name="web",
        target=ARCHIVE,
        log_path=LOG,
    )


@pytest.mark.parametrize("mode", list(BackupMode))
@pytest.mark.parametrize("phase", GUEST_PHASES)
def test_guest_phase_has_three_arguments_and_the_whole_environment(
    phase: HookPhase, mode: BackupMode
) -> None:
    call = make_hook_call(SCRIPT, phase, _facts(mode))
    assert call.argv == (SCRIPT, phase.value, mode.value, "100")
    assert call.environment == {
        "STOREID": "local",
        "DUMPDIR": "/var/lib/vz/dump",
        "VMTYPE": "qemu",
        "HOSTNAME": "web",
        "TARGET": ARCHIVE,
        "LOGFILE": LOG,
        **RUNNER,
    }


@pytest.mark.parametrize("mode", list(BackupMode))
@pytest.mark.parametrize("phase", JOB_PHASES)
def test_job_phase_has_one_argument_and_nothing_of_a_vm(phase: HookPhase, mode: BackupMode) -> None:
    call = make_hook_call(SCRIPT, phase, _facts(mode))
    assert call.argv == (SCRIPT, phase.value)
    assert call.environment == {
        "STOREID": "local",
        "DUMPDIR": "/var/lib/vz/dump",
        **RUNNER,
    }


@pytest.mark.parametrize(
    ("phase", "facts", "variables"),
    [
        (HookPhase.JOB_INIT, HookFacts(storage_id="local"), {"STOREID": "local"}),
        (HookPhase.JOB_INIT, HookFacts(dump_directory="/d"), {"DUMPDIR": "/d"}),
        (
            HookPhase.BACKUP_START,
            HookFacts(storage_id="pbs", vmid=100, target="vm/100/2026-01-02T02:05:12Z"),
            {"STOREID": "pbs", "VMTYPE": "qemu", "TARGET": "vm/100/2026-01-02T02:05:12Z"},
        ),
        (
            HookPhase.BACKUP_ABORT,
            HookFacts(storage_id="local", vmid=100, log_path="/d/x.log"),
            {"STOREID": "local", "VMTYPE": "qemu", "LOGFILE": "/d/x.log"},
        ),
        (
            HookPhase.BACKUP_ABORT,
            HookFacts(dump_directory="/d", vmid=999, vm_type=""),
            {"DUMPDIR": "/d"},
        ),
    ],
    ids=["before activation", "dumpdir given", "PBS", "before the target", "unknown VM"],
)
def test_what_is_not_known_is_not_set(
    phase: HookPhase, facts: HookFacts, variables: dict[str, str]
) -> None:
    assert make_hook_call(SCRIPT, phase, facts).environment == {**variables, **RUNNER}


def test_effective_mode_is_told_and_the_path_is_never_a_shell_word() -> None:
    call = make_hook_call(
        "/opt/my hook; rm", HookPhase.PRE_STOP, HookFacts(mode=BackupMode.STOP, vmid=7000)
    )
    assert call.argv == ("/opt/my hook; rm", "pre-stop", "stop", "7000")


@pytest.mark.parametrize(
    ("phase", "of_stop", "of_suspend", "of_snapshot"),
    [
        (HookPhase.JOB_INIT, *[HookFailure.JOB] * 3),
        (HookPhase.JOB_START, *[HookFailure.JOB] * 3),
        (HookPhase.BACKUP_START, *[HookFailure.RUN] * 3),
        (HookPhase.PRE_STOP, *[HookFailure.RUN] * 3),
        (HookPhase.PRE_RESTART, HookFailure.PRINTED, HookFailure.PRINTED, HookFailure.RUN),
        (HookPhase.POST_RESTART, HookFailure.PRINTED, HookFailure.PRINTED, HookFailure.RUN),
        (HookPhase.BACKUP_END, *[HookFailure.RUN] * 3),
        (HookPhase.BACKUP_ABORT, *[HookFailure.WARNED] * 3),
        (HookPhase.LOG_END, *[HookFailure.WARNED] * 3),
        (HookPhase.JOB_END, *[HookFailure.JOB] * 3),
        (HookPhase.JOB_ABORT, *[HookFailure.APPENDED] * 3),
    ],
)
def test_failure_means_what_the_table_of_2_4_says(
    phase: HookPhase, of_stop: HookFailure, of_suspend: HookFailure, of_snapshot: HookFailure
) -> None:
    assert hook_failure_effect(phase, BackupMode.STOP) is of_stop
    assert hook_failure_effect(phase, BackupMode.SUSPEND) is of_suspend
    assert hook_failure_effect(phase, BackupMode.SNAPSHOT) is of_snapshot


@pytest.mark.parametrize(
    ("path", "is_file", "is_executable", "text"),
    [
        (SCRIPT, False, False, f"Error: The hook script '{SCRIPT}' does not exist."),
        (SCRIPT, True, False, f"Error: The hook script '{SCRIPT}' is not executable."),
        ("hook.sh", True, True, "Error: The path of the hook script 'hook.sh' is not absolute."),
        ("", False, False, "Error: The path of the hook script '' is not absolute."),
    ],
)
def test_script_that_cannot_be_called_is_refused(
    path: str, is_file: bool, is_executable: bool, text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_hook_script(path, is_file=is_file, is_executable=is_executable)
    assert caught.value.message == text


def test_good_script_is_taken() -> None:
    check_hook_script(SCRIPT, is_file=True, is_executable=True)


@pytest.mark.parametrize(
    ("status", "reason"),
    [(1, "exit code 1"), (255, "exit code 255"), (-9, "got signal 9"), (None, "got timeout")],
)
def test_failure_is_told_with_the_command(status: int | None, reason: str) -> None:
    call = make_hook_call(SCRIPT, HookPhase.BACKUP_END, HookFacts(vmid=100))
    assert render_hook_failure(call, status) == (
        f"command '{SCRIPT} backup-end snapshot 100' failed: {reason}"
    )
