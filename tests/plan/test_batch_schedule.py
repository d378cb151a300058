"""Which VM begins next."""

import pytest

from vzdump_qemu.plan.batch_schedule import BatchSchedule
from vzdump_qemu.plan.options import StorageLimits

NO_LIMITS = StorageLimits()


def schedule(
    storages: dict[int, str], *, parallel_max: int = 9, limits: StorageLimits = NO_LIMITS
) -> BatchSchedule:
    ids = {vmid: frozenset(text.split()) for vmid, text in storages.items()}
    return BatchSchedule(ids, parallel_max=parallel_max, limits=limits)


def begin_all(of: BatchSchedule) -> list[int]:
    begun = []
    while (vmid := of.begin_next()) is not None:
        begun.append(vmid)
    return begun


def test_vms_begin_in_numeric_order_as_many_as_may() -> None:
    vms = schedule({103: "", 20_000: "", 101: "", 102: ""}, parallel_max=2)
    assert begin_all(vms) == [101, 102]
    vms.end(101)
    assert begin_all(vms) == [103]
    assert vms.waiting == (20_000,)


def test_vm_that_waits_for_a_storage_lets_the_next_one_go_first() -> None:
    limits = StorageLimits(by_storage=(("nfs", 1),))
    vms = schedule({100: "nfs a", 101: "nfs b", 102: "b", 103: "nfs"}, limits=limits)
    assert begin_all(vms) == [100, 102]
    vms.end(102)
    assert begin_all(vms) == []
    vms.end(100)
    assert begin_all(vms) == [101]
    vms.end(101)
    assert begin_all(vms) == [103]


def test_limit_of_each_storage_holds_where_none_has_its_own() -> None:
    limits = StorageLimits(of_each=1, by_storage=(("fast", 3),))
    vms = schedule({100: "fast", 101: "fast", 102: "slow", 103: "slow"}, limits=limits)
    assert begin_all(vms) == [100, 101, 102]


def test_vm_on_no_storage_waits_for_none() -> None:
    vms = schedule({100: "", 101: ""}, limits=StorageLimits(of_each=1))
    assert begin_all(vms) == [100, 101]


@pytest.mark.parametrize(("storage_id", "limit"), [("a", 2), ("b", 7), ("", 7)])
def test_limit_of_a_storage(storage_id: str, limit: int) -> None:
    assert StorageLimits(of_each=7, by_storage=(("a", 2),)).of(storage_id) == limit
