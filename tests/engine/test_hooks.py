"""What a hook script sees: order, arguments, environment; and what its failure means."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from tests.engine.world import STDOUT, World
from vzdump_qemu import events
from vzdump_qemu.events import BackupMode
from vzdump_qemu.plan.hook_script import HookPhase
from vzdump_qemu.plan.options import BackupOptions, HookOptions, TargetOptions
from vzsim.fakeqmp.run_state import RunState
from vzsim.fakeqmp.script import BackupRules, CommandRule, Script
from vzsim.world.node import DUMP_DIRECTORY

SCRIPT = "/usr/local/bin/hook"
SNAPSHOT_ORDER = [
    *("job-init", "job-start", "backup-start", "pre-stop", "pre-restart", "post-restart"),
    *("backup-end", "log-end", "job-end"),
]
HALTING_ORDER = [
    *("job-init", "job-start", "backup-start", "pre-stop", "backup-end"),
    *("pre-restart", "post-restart", "log-end", "job-end"),
]
STOPPED_ORDER = [
    *("job-init", "job-start", "backup-start", "backup-end", "log-end", "job-end"),
]


class RecordingScript:
    """A hook script that remembers its calls and fails or hangs in one phase."""

    def __init__(
        self, world: World, *, fails: str = "", hangs: str = "", looks: bool = True
    ) -> None:
        self._world = world
        self._fails = fails
        self._hangs = hangs
        self._looks = looks
        self.lock_seen: dict[str, str] = {}
        self.state_seen: dict[str, RunState | None] = {}
        world.hooks.programs["hook"] = self._run
        world.options = replace(world.options, hook=HookOptions(script=SCRIPT, timeout_s=900))

    async def _run(self, argv: Sequence[str], _: tuple[int, ...]) -> tuple[int, Sequence[str]]:
        phase = argv[1]
        if self._looks:
            self.lock_seen[phase] = self._world.node.lock_of(100)
            self.state_seen[phase] = self._world.machine.run_state
        if phase == self._hangs:
            await asyncio.Event().wait()
        return (3 if phase == self._fails else 0), (f"in {phase}",)

    @property
    def phases(self) -> list[str]:
        return [argv[1] for argv in self._world.hooks.calls]

    def environment(self, phase: str) -> Mapping[str, str]:
        return self._world.hooks.environments[self.phases.index(phase)]


def use(world: World, mode: BackupMode) -> None:
    world.options = replace(
        world.options, mode=mode, target=TargetOptions(storage_id="local"), io_priority=None
    )


@pytest.mark.parametrize(
    ("mode", "state", "told_mode", "order"),
    [
        (BackupMode.SNAPSHOT, RunState.RUNNING, "snapshot", SNAPSHOT_ORDER),
        (BackupMode.SUSPEND, RunState.RUNNING, "suspend", HALTING_ORDER),
        (BackupMode.STOP, RunState.RUNNING, "stop", HALTING_ORDER),
        (BackupMode.SNAPSHOT, None, "stop", STOPPED_ORDER),
        # Nothing is stopped or put back then.
        (BackupMode.SUSPEND, RunState.PAUSED, "suspend", STOPPED_ORDER),
    ],
)
def test_row_10_1_1_script_sees_its_phases_in_order(
    world: World, mode: BackupMode, state: RunState | None, told_mode: str, order: list[str]
) -> None:
    script = RecordingScript(world)
    world.state = state
    use(world, mode)
    world.assert_good(world.run())
    assert script.phases == order
    for argv in world.hooks.calls:
        of_job = argv[1].startswith("job-")
        assert argv == (SCRIPT, argv[1], *(() if of_job else (told_mode, "100")))
    assert [event.line for event in world.told_of(events.OutputSeen)] == [
        f"in {phase}" for phase in order
    ]


def test_row_10_1_1_environment_holds_what_is_known_and_nothing_else(world: World) -> None:
    script = RecordingScript(world)
    use(world, BackupMode.SNAPSHOT)
    world.assert_good(world.run())
    [path] = world.archives()
    always = {"LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1", "STOREID": "local"}
    assert script.environment("job-init") == always
    of_job = always | {"DUMPDIR": DUMP_DIRECTORY}
    for phase in ("job-start", "job-end"):
        assert script.environment(phase) == of_job
    of_run = of_job | {
        "VMTYPE": "qemu",
        "HOSTNAME": "web",
        "TARGET": path,
        "LOGFILE": path.removesuffix(".vma.zst") + ".log",
    }
    for phase in SNAPSHOT_ORDER:
        if not phase.startswith("job-"):
            assert script.environment(phase) == of_run


def test_environment_of_a_directory_names_no_storage(world: World) -> None:
    script = RecordingScript(world)
    world.options = replace(
        world.options, target=TargetOptions(dump_directory=DUMP_DIRECTORY), io_priority=None
    )
    world.assert_good(world.run())
    for phase in SNAPSHOT_ORDER:
        assert script.environment(phase)["DUMPDIR"] == DUMP_DIRECTORY
        assert "STOREID" not in script.environment(phase)


def test_environment_of_standard_output_names_no_files(world: World) -> None:
    script = RecordingScript(world)
    world.options = replace(world.options, target=STDOUT, io_priority=None)
    result = world.run()
    assert result is not None and result.error is None
    assert script.environment("backup-end")["TARGET"] == "-"
    assert {"DUMPDIR", "LOGFILE", "STOREID"}.isdisjoint(script.environment("backup-end"))


def test_vm_that_is_not_there_is_told_without_its_facts(world: World) -> None:
    script = RecordingScript(world, looks=False)
    use(world, BackupMode.SNAPSHOT)
    world.arrange = lambda world: world.node.configs.clear()
    world.run()
    assert script.phases == ["job-init", "job-start", "backup-abort", "log-end", "job-end"]
    assert set(script.environment("log-end")) == {
        *("LC_ALL", "LVM_SUPPRESS_FD_WARNINGS", "STOREID", "DUMPDIR"),
    }


# Up to the archive, and what follows if it fails or is given up; the job's last call differs.
BROKEN_ORDERS = {
    BackupMode.SNAPSHOT: [*SNAPSHOT_ORDER[:6], "backup-abort", "log-end"],
    BackupMode.SUSPEND: [*HALTING_ORDER[:4], *HALTING_ORDER[5:7], "backup-abort", "log-end"],
    BackupMode.STOP: [*HALTING_ORDER[:4], *HALTING_ORDER[5:7], "backup-abort", "log-end"],
}


def assert_told_as(world: World, script: RecordingScript, mode: BackupMode) -> None:
    """Every call had the arguments and the whole environment of its phase."""
    [archive] = {environment.get("TARGET", "") for environment in world.hooks.environments} - {""}
    of_job = {
        "LC_ALL": "C",
        "LVM_SUPPRESS_FD_WARNINGS": "1",
        "STOREID": "local",
        "DUMPDIR": DUMP_DIRECTORY,
    }
    of_run = of_job | {
        "VMTYPE": "qemu",
        "HOSTNAME": "web",
        "TARGET": archive,
        "LOGFILE": archive.removesuffix(".vma.zst") + ".log",
    }
    assert archive.startswith(f"{DUMP_DIRECTORY}/vzdump-qemu-100-")
    for argv, environment in zip(world.hooks.calls, world.hooks.environments, strict=True):
        phase = argv[1]
        if phase.startswith("job-"):
            assert argv == (SCRIPT, phase)
            known = of_job if phase != "job-init" else of_job.keys() - {"DUMPDIR"}
            assert environment == {name: of_job[name] for name in known}
        else:
            assert argv == (SCRIPT, phase, mode.value, "100")
            assert environment == of_run


@pytest.mark.parametrize("mode", BROKEN_ORDERS)
def test_row_10_1_1_failed_run_is_told_as_aborted(world: World, mode: BackupMode) -> None:
    script = RecordingScript(world)
    use(world, mode)
    world.script = Script(backup=BackupRules(fail_at_bytes=1 << 20, fail_text="no luck"))
    world.assert_failed_clean(world.run(), "no luck")
    assert script.phases == [*BROKEN_ORDERS[mode], "job-end"]
    assert_told_as(world, script, mode)
    assert world.machine.run_state is RunState.RUNNING


@pytest.mark.parametrize("mode", BROKEN_ORDERS)
def test_row_10_1_1_interrupted_job_is_told_as_aborted(world: World, mode: BackupMode) -> None:
    script = RecordingScript(world)
    use(world, mode)
    world.cancel_on = events.JobAccepted
    assert world.run() is None
    assert script.phases == [*BROKEN_ORDERS[mode], "job-abort"]
    assert_told_as(world, script, mode)
    assert world.told_of(events.JobEnded)[0].error == "interrupted by signal"
    assert world.machine.run_state is RunState.RUNNING
    world.assert_nothing_left()


def test_guest_is_back_before_post_restart_and_unlocked_at_the_end(world: World) -> None:
    script = RecordingScript(world)
    use(world, BackupMode.STOP)
    world.assert_good(world.run())
    assert script.state_seen["pre-stop"] is RunState.RUNNING
    assert script.lock_seen["backup-end"] == "backup"
    assert script.lock_seen["pre-restart"] == ""
    assert script.state_seen["post-restart"] is RunState.RUNNING


def failed(phase: str, mode: str = "snapshot") -> str:
    rest = "" if phase.startswith("job-") else f" {mode} 100"
    return f"command '{SCRIPT} {phase}{rest}' failed: exit code 3"


@pytest.mark.parametrize(
    "phase", ["backup-start", "pre-stop", "pre-restart", "post-restart", "backup-end"]
)
def test_row_10_1_1_failure_in_a_phase_of_the_run_fails_the_vm(world: World, phase: str) -> None:
    script = RecordingScript(world, fails=phase)
    use(world, BackupMode.SNAPSHOT)
    result = world.run()
    assert result is not None and str(result.error) == failed(phase)
    assert script.phases[-3:] == ["backup-abort", "log-end", "job-end"]
    # What was proved and has its name stays, whatever the script says of it.
    assert len(world.archives()) == (1 if phase == "backup-end" else 0)
    world.assert_nothing_left()


def test_failing_pre_stop_keeps_the_guest_running(world: World) -> None:
    script = RecordingScript(world, fails="pre-stop")
    use(world, BackupMode.STOP)
    world.assert_failed_clean(world.run(), failed("pre-stop", "stop"))
    assert script.state_seen["backup-abort"] is RunState.RUNNING
    assert "pre-restart" not in script.phases
    assert not world.told_of(events.GuestRestarting)


@pytest.mark.parametrize("phase", ["pre-restart", "post-restart", "backup-abort", "log-end"])
def test_row_10_1_1_failure_in_a_phase_that_comes_after_is_a_warning(
    world: World, phase: str
) -> None:
    script = RecordingScript(world, fails=phase)
    use(world, BackupMode.STOP)
    world.script = Script(backup=BackupRules(fail_at_bytes=1 << 20, fail_text="no luck"))
    result = world.run()
    assert result is not None and "no luck" in str(result.error)
    assert failed(phase, "stop") in result.warnings
    assert world.machine.run_state is RunState.RUNNING
    assert ("post-restart" in script.phases) is (phase != "pre-restart")
    world.assert_nothing_left()


def test_failing_job_init_ends_the_job_before_it_began(world: World) -> None:
    script = RecordingScript(world, fails="job-init")
    use(world, BackupMode.SNAPSHOT)
    assert world.run() is None
    assert script.phases == ["job-init"]
    assert str(world.batch.error) == failed("job-init") if world.batch else False


@pytest.mark.parametrize(("phase", "vm_count"), [("job-start", 0), ("job-end", 1)])
def test_row_10_1_1_failing_phase_of_the_job_fails_and_aborts_it(
    world: World, phase: str, vm_count: int
) -> None:
    script = RecordingScript(world, fails=phase)
    use(world, BackupMode.SNAPSHOT)
    world.run()
    assert world.batch is not None
    assert len(world.batch.runs) == vm_count
    assert str(world.batch.error) == failed(phase)
    assert script.phases[-2:] == [phase, "job-abort"]
    assert world.told_of(events.JobEnded)[0].error == failed(phase)


def test_failing_job_abort_is_appended(world: World) -> None:
    RecordingScript(world, fails="job-start")
    use(world, BackupMode.SNAPSHOT)
    run = world.hooks.programs["hook"]

    async def fail_both(argv: Sequence[str], fds: tuple[int, ...]) -> tuple[int, Sequence[str]]:
        return (3, ()) if argv[1] == "job-abort" else await run(argv, fds)

    world.hooks.programs["hook"] = fail_both
    world.run()
    assert world.batch is not None
    assert str(world.batch.error) == f"{failed('job-start')}\n{failed('job-abort')}"


def test_hanging_script_is_ended_at_its_limit(world: World) -> None:
    script = RecordingScript(world, hangs="backup-start")
    use(world, BackupMode.SNAPSHOT)
    result = world.run()
    assert result is not None
    assert str(result.error) == f"command '{SCRIPT} backup-start snapshot 100' failed: got timeout"
    assert 900 <= result.duration_s < 1000
    assert script.phases[-3:] == ["backup-abort", "log-end", "job-end"]
    world.assert_nothing_left()


def test_guest_that_is_down_does_not_wait_long_for_a_hanging_script(world: World) -> None:
    RecordingScript(world, hangs="pre-restart")
    use(world, BackupMode.SUSPEND)
    # Of a VM whose guest is still halted when its run has failed.
    world.script = Script(command=(CommandRule(name="backup", error="no luck"),))
    result = world.run()
    assert result is not None and "no luck" in str(result.error)
    assert result.duration_s < 400
    assert world.machine.run_state is RunState.RUNNING
    world.assert_nothing_left()


def test_interruption_ends_a_hanging_script_in_order(world: World) -> None:
    script = RecordingScript(world, hangs="backup-end")
    use(world, BackupMode.SNAPSHOT)

    async def interrupt(world: World) -> None:
        await asyncio.sleep(600)
        world.cancel()

    world.meanwhile = interrupt
    assert world.run() is None
    assert script.phases[-3:] == ["backup-abort", "log-end", "job-abort"]
    assert world.told_of(events.RunFailed)[0].text == "interrupted by signal"
    assert len(world.archives()) == 1
    world.assert_nothing_left()


def test_script_without_end_of_words_fills_no_log(world: World) -> None:
    RecordingScript(world)
    use(world, BackupMode.SNAPSHOT)

    async def talk(argv: Sequence[str], _: tuple[int, ...]) -> tuple[int, Sequence[str]]:
        return 0, [f"line {index}" for index in range(5000)] if argv[1] == "job-init" else ()

    world.hooks.programs["hook"] = talk
    world.assert_good(world.run())
    told = [event.line for event in world.told_of(events.OutputSeen)]
    assert (len(told), told[0], told[-1]) == (1001, "... 4000 lines left out ...", "line 4999")


def test_without_a_script_nothing_is_called(world: World) -> None:
    assert BackupOptions().hook.script == ""
    world.assert_good(world.run())
    assert world.hooks.calls == []
    assert len(HookPhase) == 11
