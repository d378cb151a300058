"""Several VMs in one job: at once, with limits, with a deadline, cancelled, and told apart."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.engine.fleet import VMIDS, Fleet
from vzdump_qemu import events
from vzdump_qemu.engine.context import RunResult
from vzdump_qemu.plan.options import (
    BatchOptions,
    FleecingOptions,
    HookOptions,
    KeepOptions,
    StorageLimits,
)
from vzdump_qemu.plan.retention_rule import KeepOption, RetentionRule, RetentionSettings
from vzsim.world.node import DUMP_DIRECTORY


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def ask(fleet: Fleet, **batch: object) -> None:
    fleet.options = replace(fleet.options, batch=BatchOptions(**batch))  # type: ignore[arg-type]


def failed(results: Sequence[RunResult]) -> dict[int, str]:
    return {result.vmid: str(result.error) for result in results if result.error is not None}


def test_job_without_more_words_backs_up_one_vm_after_another(fleet: Fleet) -> None:
    fleet.vmids = (103, 101, 100, 102)
    batch = fleet.back_up()
    assert batch is not None and batch.ok
    assert fleet.order(events.RunStarted) == fleet.order(events.RunClosed) == list(VMIDS)
    assert fleet.most_at_once == 1
    fleet.assert_archived(*VMIDS)


@pytest.mark.parametrize("count", [2, 3, 9])
def test_so_many_vms_at_once_as_may_begin_in_numeric_order(fleet: Fleet, count: int) -> None:
    ask(fleet, parallel_max=count)
    batch = fleet.back_up()
    assert batch is not None and batch.ok
    assert sorted(result.vmid for result in batch.runs) == list(VMIDS)
    assert fleet.order(events.RunStarted) == list(VMIDS)
    assert fleet.most_at_once == min(count, len(VMIDS))
    fleet.assert_archived(*VMIDS)
    fleet.assert_all_as_before()


def test_runs_at_once_speak_each_with_a_voice_of_its_own(fleet: Fleet) -> None:
    ask(fleet, parallel_max=4)
    fleet.back_up()
    for vmid in VMIDS:
        said = fleet.said_by(vmid)
        assert events.VmNamed(vm_name=f"vm{vmid}") in said
        assert isinstance(said[0], events.RunStarted) and said[0].vmid == vmid
        assert isinstance(said[-1], events.RunClosed) and said[-1].vmid == vmid
    of_job = [type(event) for event in fleet.said_by(None)]
    assert of_job == [events.JobStarted, events.JobEnded]


def test_vm_that_fails_stops_none_of_those_at_its_side(fleet: Fleet) -> None:
    ask(fleet, parallel_max=4)

    def lock(_: int | None, event: events.Event) -> None:
        if isinstance(event, events.JobStarted):
            fleet.node.configs[101] = b"lock: migrate\n" + fleet.node.configs[101]

    fleet.vmids = (*VMIDS, 999)
    fleet.on_event = lock
    batch = fleet.back_up()
    assert batch is not None and batch.error is None
    assert failed(batch.runs) == {
        101: "VM is locked (migrate)",
        999: "unable to find configuration file for VM 999 on node 'node1'",
    }
    assert fleet.told_of(events.JobEnded)[0].failed_vmids == (101, 999)
    fleet.assert_archived(100, 102, 103)


def test_limit_of_the_target_holds_for_all(fleet: Fleet) -> None:
    ask(fleet, parallel_max=4, storage_limits=StorageLimits(by_storage=(("local", 2),)))
    batch = fleet.back_up()
    assert batch is not None and batch.ok
    assert fleet.most_at_once == 2


def test_limit_of_a_disks_storage_lets_others_go_first(fleet: Fleet) -> None:
    fleet.storage_of = {100: "slow", 101: "slow"}
    ask(fleet, parallel_max=2, storage_limits=StorageLimits(by_storage=(("slow", 1),)))
    batch = fleet.back_up()
    assert batch is not None and batch.ok
    assert fleet.order(events.RunStarted) == [100, 102, 101, 103]
    assert fleet.told_of(events.Warned) == []


def test_limit_of_the_storage_of_fleecing_images_holds(fleet: Fleet) -> None:
    fleet.storage_of = dict.fromkeys(VMIDS, "slow")
    limits = StorageLimits(by_storage=(("scratch", 1),))
    ask(fleet, parallel_max=4, storage_limits=limits)
    fleecing = FleecingOptions(enabled=True, storage_id="scratch")
    fleet.options = replace(fleet.options, fleecing=fleecing)
    batch = fleet.back_up()
    assert batch is not None and batch.ok
    assert fleet.most_at_once == 1


def test_limit_of_a_storage_that_nobody_touches_is_a_warning(fleet: Fleet) -> None:
    ask(fleet, storage_limits=StorageLimits(by_storage=(("nsf", 1),)))
    batch = fleet.back_up()
    assert batch is not None and batch.ok
    [warned] = fleet.told_of(events.Warned)
    assert warned.text == "storage-limit: no VM of this job touches storage 'nsf'"


def test_no_run_begins_after_the_deadline_and_those_that_did_go_on(fleet: Fleet) -> None:
    fleet.arrange = lambda world: ask(
        fleet, parallel_max=2, deadline_wall_s=fleet.clock.wall_s() + 1.5
    )
    batch = fleet.back_up()
    assert batch is not None and not batch.ok
    assert [result.vmid for result in batch.runs] == [100, 101]
    assert failed(batch.runs) == {}
    text = "deadline reached before these VMs were begun: 102, 103"
    assert str(batch.error) == fleet.job_error() == text
    fleet.assert_archived(100, 101)


def test_deadline_names_no_more_vms_than_one_can_read(fleet: Fleet) -> None:
    fleet.vmids = tuple(range(100, 150))
    fleet.arrange = lambda world: ask(fleet, deadline_wall_s=fleet.clock.wall_s())
    batch = fleet.back_up()
    assert batch is not None and batch.runs == ()
    assert fleet.job_error().endswith("begun: 100, 101, 102, 103, 104, 105, 106, 107 and 42 more")


def test_lock_is_not_waited_for_beyond_the_deadline(fleet: Fleet) -> None:
    ended_s: list[float] = []
    holders: list[asyncio.Future[bool]] = []

    def hold(world: object) -> None:
        ask(fleet, deadline_wall_s=fleet.clock.wall_s() + 30)
        holders.append(asyncio.ensure_future(fleet.node.global_lock.acquire()))

    fleet.arrange = hold
    fleet.on_event = lambda _, event: (
        ended_s.append(asyncio.get_running_loop().time())
        if isinstance(event, events.JobEnded)
        else None
    )
    batch = fleet.back_up()
    assert batch is not None and "can't acquire lock" in str(batch.error)
    assert ended_s[0] < 60


def test_cancelled_job_puts_every_guest_back_and_begins_none(fleet: Fleet) -> None:
    ask(fleet, parallel_max=2)
    fleet.cancel_on = events.JobAccepted
    assert fleet.back_up() is None
    assert fleet.order(events.RunStarted) == [100, 101]
    texts = {event.vmid: event.text for event in fleet.told_of(events.RunFailed)}
    assert texts == dict.fromkeys((100, 101), "interrupted by signal")
    assert fleet.job_error() == "interrupted by signal"
    fleet.assert_archived()
    fleet.assert_all_as_before()


def test_job_cancelled_again_while_it_undoes_still_undoes_all(fleet: Fleet) -> None:
    ask(fleet, parallel_max=3)
    hurrying = (events.JobAccepted, events.JobAborting, events.RunFailed)
    fleet.on_event = lambda _, event: fleet.cancel() if isinstance(event, hurrying) else None
    assert fleet.back_up() is None
    assert fleet.job_error() == "interrupted by signal"
    fleet.assert_archived()
    fleet.assert_all_as_before()


def test_job_cancelled_when_one_run_is_over_keeps_what_that_made(fleet: Fleet) -> None:
    ask(fleet, parallel_max=2)
    fleet.cancel_on = events.RunClosed
    assert fleet.back_up() is None
    done = [event.vmid for event in fleet.told_of(events.RunSucceeded)]
    fleet.assert_archived(*done)
    fleet.assert_all_as_before()


def test_script_is_called_once_for_the_job_and_for_each_run(fleet: Fleet) -> None:
    async def note(argv: Sequence[str], _: tuple[int, ...]) -> tuple[int, Sequence[str]]:
        return 0, ()

    ask(fleet, parallel_max=4)
    fleet.options = replace(fleet.options, hook=HookOptions(script="/hook"))
    fleet.hooks.programs["hook"] = note
    batch = fleet.back_up()
    assert batch is not None and batch.ok
    calls = [tuple(argv[1:]) for argv in fleet.hooks.calls]
    for phase in ("job-init", "job-start", "job-end"):
        assert calls.count((phase,)) == 1
    for vmid in VMIDS:
        assert calls.count(("backup-end", "snapshot", str(vmid))) == 1
    assert calls[:2] == [("job-init",), ("job-start",)]
    assert calls[-1] == ("job-end",)


def test_script_hears_of_a_cancelled_job_once(fleet: Fleet) -> None:
    async def note(argv: Sequence[str], _: tuple[int, ...]) -> tuple[int, Sequence[str]]:
        return 0, ()

    ask(fleet, parallel_max=3)
    fleet.options = replace(fleet.options, hook=HookOptions(script="/hook"))
    fleet.hooks.programs["hook"] = note
    fleet.cancel_on = events.JobAccepted
    assert fleet.back_up() is None
    phases = [argv[1] for argv in fleet.hooks.calls]
    assert phases.count("job-abort") == 1
    assert phases.count("backup-abort") == 3
    assert phases[-1] == "job-abort"


def test_runs_at_once_remove_only_older_archives_of_their_own_vm(fleet: Fleet) -> None:
    rule = RetentionRule(counts={KeepOption.LAST: 1})
    keep = KeepOptions(retention=RetentionSettings(rule=rule, remove=True))
    fleet.options = replace(fleet.options, keep=keep)
    older = [f"{DUMP_DIRECTORY}/vzdump-qemu-{vmid}-2001_01_01-00_00_00.vma.zst" for vmid in VMIDS]
    foreign = f"{DUMP_DIRECTORY}/vzdump-qemu-104-2001_01_01-00_00_00.vma.zst"

    def put(world: object) -> None:
        for path in (*older, foreign):
            fleet.files.create(path)

    fleet.arrange = put
    ask(fleet, parallel_max=4)
    batch = fleet.back_up()
    assert batch is not None and batch.ok
    assert not set(older) & set(fleet.files.files)
    assert foreign in fleet.files.files


def test_row_1_6_2_external_vms_are_told_and_left_alone(fleet: Fleet) -> None:
    ask(fleet, external_vmids=(200, 201))
    batch = fleet.back_up()
    assert batch is not None and batch.ok
    assert fleet.said_by(None)[1] == events.ExternalVmsSkipped(vmids=(200, 201))


def test_row_1_7_1_vm_that_is_known_to_fail_fails_with_that_reason(fleet: Fleet) -> None:
    ask(fleet, refusals=((101, "unable to find VM '101'"),))
    batch = fleet.back_up()
    assert batch is not None
    assert failed(batch.runs) == {101: "unable to find VM '101'"}
    fleet.assert_archived(100, 102, 103)
