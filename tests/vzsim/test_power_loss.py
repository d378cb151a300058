"""Power loss: what the simulated node keeps, what it may lose, and who must notice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from vzdump_qemu.journal_ports import Reversal, ReversalKind
from vzsim.evidence import Ending
from vzsim.faults import FaultScript
from vzsim.scenario import Scenario
from vzsim.simulation import simulate
from vzsim.system import SystemPorts, load_system
from vzsim.world.files import SimulatedFiles
from vzsim.world.journal import SimulatedJournals


class _Forgetful:
    """The real engine on a store that never syncs what it writes."""

    async def back_up(self, ports: SystemPorts, options: Mapping[str, Any]) -> Any:
        store: Any = ports.store
        store._inner.files.fsync = lambda path: None
        return await load_system().back_up(ports, options)

    async def recover(self, ports: SystemPorts, vmid: int) -> bool:
        return await load_system().recover(ports, vmid)


PLAIN = Scenario(name="plain", about="one running VM")
_SEEDS = range(40)


def _after_power_loss(act: Callable[[SimulatedFiles], None]) -> list[SimulatedFiles]:
    """The same acts, then as many power losses as there are seeds."""
    found = []
    for seed in _SEEDS:
        files = SimulatedFiles()
        files.make_directories("/dump")
        act(files)
        files.lose_power(random.Random(seed))
        found.append(files)
    return found


def _states(worlds: list[SimulatedFiles], path: str) -> set[bytes | None]:
    return {bytes(w.files[path].content) if path in w.files else None for w in worlds}


def test_synced_file_under_a_synced_name_is_always_kept_whole() -> None:
    def act(files: SimulatedFiles) -> None:
        files.create("/dump/a")
        files.append("/dump/a", b"data")
        files.fsync("/dump/a")
        files.fsync_directory("/dump")

    assert _states(_after_power_loss(act), "/dump/a") == {b"data"}


def test_unsynced_bytes_are_cut_anywhere_or_read_as_zeros() -> None:
    def act(files: SimulatedFiles) -> None:
        files.create("/dump/a")
        files.append("/dump/a", b"ab")
        files.fsync("/dump/a")
        files.fsync_directory("/dump")
        files.append("/dump/a", b"cd")

    states = _states(_after_power_loss(act), "/dump/a")
    assert {b"ab", b"abc", b"abcd", b"ab\0\0"} <= states
    assert all(state is not None and state.startswith(b"ab") for state in states)


def test_new_name_without_a_directory_sync_may_be_gone() -> None:
    def act(files: SimulatedFiles) -> None:
        files.create("/dump/a")
        files.append("/dump/a", b"data")
        files.fsync("/dump/a")

    assert _states(_after_power_loss(act), "/dump/a") == {None, b"data"}


def test_rename_without_a_directory_sync_is_one_name_or_the_other() -> None:
    def act(files: SimulatedFiles) -> None:
        files.create("/dump/old")
        files.append("/dump/old", b"data")
        files.settle()
        files.rename("/dump/old", "/dump/new")

    worlds = _after_power_loss(act)
    assert {tuple(sorted(world.files)) for world in worlds} == {("/dump/new",), ("/dump/old",)}


def test_unlink_without_a_directory_sync_may_be_undone() -> None:
    def act(files: SimulatedFiles) -> None:
        files.create("/dump/a")
        files.append("/dump/a", b"data")
        files.settle()
        files.unlink("/dump/a")

    assert _states(_after_power_loss(act), "/dump/a") == {None, b"data"}


def test_directory_that_is_lost_takes_its_files_with_it() -> None:
    def act(files: SimulatedFiles) -> None:
        files.create_directory("/dump/t")
        files.create("/dump/t/a")
        files.fsync_directory("/dump/t")

    for world in _after_power_loss(act):
        assert ("/dump/t/a" in world.files) == ("/dump/t" in world.directories)


def test_removed_tree_may_come_back_in_part_but_never_without_its_directory() -> None:
    def act(files: SimulatedFiles) -> None:
        files.create_directory("/dump/t")
        files.create("/dump/t/a")
        files.create("/dump/t/b")
        files.settle()
        files.remove_tree("/dump/t")

    seen = set()
    for world in _after_power_loss(act):
        seen.add(("/dump/t" in world.directories, len(world.files)))
        assert not world.files or "/dump/t" in world.directories
    assert {(False, 0), (True, 0), (True, 1), (True, 2)} <= seen


def test_power_loss_after_a_power_loss_changes_nothing() -> None:
    def act(files: SimulatedFiles) -> None:
        files.create("/dump/a")
        files.append("/dump/a", b"data")

    for world in _after_power_loss(act):
        before = {path: bytes(file.content) for path, file in world.files.items()}
        world.lose_power(random.Random(7))
        assert {path: bytes(file.content) for path, file in world.files.items()} == before


def _journal_after(acts: str, seed: int) -> list[int] | None:
    """Open entries after `n`otes and `s`trikes (of the oldest) and a power loss; None: no file."""

    async def main() -> list[int] | None:
        journals = SimulatedJournals()
        async with journals.open(100) as journal:
            for act in acts.rstrip("."):
                if act == "n":
                    await journal.note(Reversal(kind=ReversalKind.UNLOCK))
                else:
                    journal.strike(journal.open_entries[0][0])
            if not acts.endswith("."):
                journals.lose_power(random.Random(seed))
                return [index for index, _ in journal.open_entries]
        journals.lose_power(random.Random(seed))
        if 100 not in journals.journals:
            return None
        return [index for index, _ in journals.journals[100].open_entries]

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("acts", "outcomes"),
    [
        ("nn", [[1, 2]]),
        ("nns", [[1, 2], [2]]),
        ("nnss", [[], [1, 2], [2]]),
        ("nnsn", [[2, 3]]),
        ("ns.", [None, [1], []]),
    ],
)
def test_journal_keeps_notes_and_may_bring_back_the_last_strikes(
    acts: str, outcomes: list[list[int] | None]
) -> None:
    found = [_journal_after(acts, seed) for seed in _SEEDS]
    assert all(outcome in outcomes for outcome in found)
    assert all(outcome in found for outcome in outcomes)


@pytest.mark.parametrize(
    "site", ["clock.sleep", "files.write", "files.fsync", "files.rename", "files.fsync-directory"]
)
def test_run_that_loses_power_leaves_a_whole_archive_or_none(site: str) -> None:
    for seed in range(4):
        script = FaultScript.parse(f"power-loss@{site}#1")
        report = simulate(load_system(), PLAIN, script, seed)
        assert report.violations == ()
        first, second = report.evidences
        assert first.ending is Ending.KILLED and second.ending is Ending.OK
        assert first.observed.power_was_lost and first.rest.run_state == ""
        assert first.rest.lock == "" and first.rest.journalled == ()


def test_archive_that_was_not_synced_before_its_name_is_found_after_a_power_loss() -> None:
    """A store that forgets to sync is one that a power loss betrays (failure mode 65)."""
    checkers = set()
    script = FaultScript.parse("power-loss@node.clear_vm_lock#1")
    for seed in range(8):
        report = simulate(_Forgetful(), PLAIN, script, seed)
        checkers |= {violation.checker for violation in report.violations}
    assert "archive-whole" in checkers


def test_file_in_a_run_directory_is_gone_even_if_it_was_synced() -> None:
    def act(files: SimulatedFiles) -> None:
        files.make_directories("/var/run/qemu-server")
        files.create("/var/run/qemu-server/100.nbd")
        files.settle()

    for world in _after_power_loss(act):
        assert world.files == {} and "/var/run/qemu-server" in world.directories
