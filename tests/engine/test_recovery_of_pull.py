"""Recovery takes a killed pull out of a running QEMU: its nodes, its exports and its server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.engine.chain import WRITING
from tests.engine.wreck import NODE, Killed, Wreck
from vzdump_qemu.engine.pull_source import PullSource
from vzdump_qemu.engine.recovery import recover_vm
from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.journal_ports import Reversal, ReversalKind
from vzdump_qemu.plan.options import FleecingOptions
from vzdump_qemu.ports import Machine, Qmp
from vzsim.fakeqmp.schema import Dialect
from vzsim.fakeqmp.script import CommandRule, Script

FOREIGN_SOCKET = "/run/other/nbd.sock"
EXPORTS = ("vzdump-0", "vzdump-view-0", "vzdump-1", "vzdump-view-1")


@dataclass
class KillableMachine:
    """Ends its process at one command: QEMU has carried it out, and nobody learns of it."""

    machine: Machine
    at_command: int
    command_count: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.machine, name)

    @asynccontextmanager
    async def connect_qmp(self, *, timeout_s: float) -> AsyncIterator[KillableQmp]:
        async with self.machine.connect_qmp(timeout_s=timeout_s) as qmp:
            yield KillableQmp(qmp, self)


@dataclass
class KillableQmp:
    """See `KillableMachine`."""

    qmp: Qmp
    machine: KillableMachine

    async def execute(self, command: str, arguments: Any = None, *, timeout_s: float) -> Any:
        answer = await self.qmp.execute(command, arguments, timeout_s=timeout_s)
        self.machine.command_count += 1
        if self.machine.command_count == self.machine.at_command:
            raise Killed
        return answer


@dataclass
class PulledWreck(Wreck):
    """A running guest whose tool was killed with all disks at a point in time."""

    script: Script = WRITING
    dialect: Dialect = Dialect.UPSTREAM
    nodes_before: frozenset[str] = frozenset()
    noted: tuple[Reversal, ...] = ()

    async def be_killed(self, *, exposed: bool) -> None:
        """Up to the running NBD server, and with `exposed` up to the exports on it."""
        self.nodes_before = frozenset(await self.node_names())
        async with self.journals.open(100) as journal:
            source = await self._source()
            await source.prepare(UndoStack(self._emit, journal, self.clock))
            await source.fix()
            if exposed:
                await source.expose()
            self.noted = tuple(reversal for _, reversal in journal.open_entries)
            # As the kernel does with a dead process's connection.
            await source._close()
        await asyncio.sleep(1)

    async def _source(self) -> PullSource:
        fleecing = FleecingOptions(enabled=True, storage_id="local")
        return PullSource(self.ports, self.machine, await self.run_disks(), fleecing)

    def noted_of(self, kind: ReversalKind) -> list[Reversal]:
        """What the dead run noted of one kind."""
        return [reversal for reversal in self.noted if reversal.kind is kind]

    async def forget_all_but(self, reversals: Sequence[Reversal]) -> None:
        """As if only these acts had been noted."""
        self.journals.journals.clear()
        await self.note(*reversals)

    def used_nodes(self) -> list[str]:
        """The node that each disk's device uses, by its place in the order of disks."""
        backends = (self.machine.process.block.backend(f"drive-scsi{index}") for index in (0, 1))
        return [each.node.name for each in backends if each is not None and each.node is not None]

    async def left_nodes(self) -> set[str]:
        return await self.node_names() - self.nodes_before

    async def export_ids(self) -> list[str]:
        return [export["id"] for export in await self.execute("query-block-exports")]

    async def start_server(self, path: str) -> None:
        self.files.make_directories(os.path.dirname(path))
        address = {"type": "unix", "data": {"path": path}}
        await self.execute("nbd-server-start", addr=address)

    async def assert_guest_writes_on(self) -> None:
        guest = self.machine.guest
        assert guest is not None
        before_count = guest.write_count
        await asyncio.sleep(2)
        assert guest.write_count > before_count
        assert guest.failed_write_count == 0

    async def recover_killed_at(self, nth_command: int) -> bool:
        """Recover, and be killed once QEMU has answered that command; whether it came to it."""
        try:
            async with self.journals.open(100) as journal:
                machine: Any = KillableMachine(self.machine, at_command=nth_command)
                await recover_vm(self.ports, machine, journal, holds_global_lock=False)
        except Killed:
            return True
        return False


# -- release-disk ------------------------------------------------------------------------------


def test_released_disk_is_on_its_own_node_again_and_its_guest_writes_on() -> None:
    async def scene(wreck: PulledWreck) -> None:
        own = wreck.used_nodes()
        await wreck.be_killed(exposed=False)
        assert wreck.used_nodes() == ["vzdump-pass-0", "vzdump-pass-1"]
        await wreck.forget_all_but(wreck.noted_of(ReversalKind.RELEASE_DISK))
        assert await wreck.recover()
        assert wreck.used_nodes() == own
        assert await wreck.left_nodes() == set()
        assert wreck.journals.journals == {}
        await wreck.assert_guest_writes_on()

    PulledWreck().play(scene)


def test_releasing_one_disk_leaves_the_other_at_its_point_in_time() -> None:
    async def scene(wreck: PulledWreck) -> None:
        own = wreck.used_nodes()
        await wreck.be_killed(exposed=False)
        await wreck.forget_all_but(wreck.noted_of(ReversalKind.RELEASE_DISK)[:1])
        assert await wreck.recover()
        assert wreck.used_nodes() == [own[0], "vzdump-pass-1"]
        assert {name.rpartition("-")[2] for name in await wreck.left_nodes()} == {"1"}

    PulledWreck().play(scene)


def test_releasing_disks_of_a_qemu_that_is_gone_has_nothing_to_do() -> None:
    async def scene(wreck: PulledWreck) -> None:
        await wreck.be_killed(exposed=True)
        await wreck.forget_all_but(wreck.noted_of(ReversalKind.RELEASE_DISK))
        wreck.machine.end_process()
        await asyncio.sleep(1)
        assert await wreck.recover()
        assert wreck.machine.run_state is None
        assert wreck.journals.journals == {}

    PulledWreck().play(scene)


def test_releasing_a_disk_that_was_never_attached_touches_nothing() -> None:
    async def scene(wreck: PulledWreck) -> None:
        await wreck.attach()
        own, nodes = wreck.used_nodes(), await wreck.node_names()
        names = ("0", "/machine/peripheral/scsi0", own[0])
        await wreck.note(Reversal(kind=ReversalKind.RELEASE_DISK, names=names))
        assert await wreck.recover()
        assert (wreck.used_nodes(), await wreck.node_names()) == (own, nodes)
        assert not {"qom-set", "blockdev-del", "blockdev-reopen"} & set(wreck.qmp_log)

    PulledWreck().play(scene)


def test_node_of_another_tool_stays_when_disks_are_released() -> None:
    async def scene(wreck: PulledWreck) -> None:
        await wreck.be_killed(exposed=False)
        await wreck.attach()
        await wreck.forget_all_but(wreck.noted_of(ReversalKind.RELEASE_DISK))
        assert await wreck.recover()
        left = await wreck.left_nodes()
        assert {name for name in left if not name.startswith("#")} == {NODE}

    PulledWreck().play(scene)


def test_disk_that_cannot_be_released_now_stays_noted_and_is_released_the_next_time() -> None:
    async def scene(wreck: PulledWreck) -> None:
        own = wreck.used_nodes()
        await wreck.be_killed(exposed=False)
        disks = wreck.noted_of(ReversalKind.RELEASE_DISK)
        await wreck.forget_all_but(disks)
        assert not await wreck.recover()
        # The one noted last comes first, and its failure does not keep the other.
        assert wreck.left() == disks[1:]
        assert wreck.used_nodes()[0] == own[0]
        assert await wreck.recover()
        assert wreck.used_nodes() == own
        assert await wreck.left_nodes() == set()

    rule = CommandRule(name="blockdev-del", nth=1, error="Node is in use")
    PulledWreck(script=Script(guest=WRITING.guest, command=(rule,))).play(scene)


# -- stop-nbd ----------------------------------------------------------------------------------


def test_stopped_server_has_no_exports_and_its_place_is_free_for_another() -> None:
    async def scene(wreck: PulledWreck) -> None:
        await wreck.be_killed(exposed=True)
        assert set(await wreck.export_ids()) == set(EXPORTS)
        await wreck.forget_all_but(wreck.noted_of(ReversalKind.STOP_NBD))
        assert await wreck.recover()
        assert await wreck.export_ids() == []
        assert wreck.journals.journals == {}
        # One that still ran would refuse a second.
        await wreck.start_server(FOREIGN_SOCKET)
        await wreck.assert_guest_writes_on()

    PulledWreck().play(scene)


def test_stopping_the_server_of_a_qemu_that_is_gone_has_nothing_to_do() -> None:
    async def scene(wreck: PulledWreck) -> None:
        await wreck.be_killed(exposed=True)
        await wreck.forget_all_but(wreck.noted_of(ReversalKind.STOP_NBD))
        wreck.machine.end_process()
        await asyncio.sleep(1)
        assert await wreck.recover()
        assert wreck.journals.journals == {}

    PulledWreck().play(scene)


def test_server_and_exports_of_another_tool_are_left_alone() -> None:
    async def scene(wreck: PulledWreck) -> None:
        await wreck.start_server(FOREIGN_SOCKET)
        await wreck.attach()
        arguments = {"type": "nbd", "id": "other", "node-name": NODE, "name": "other"}
        await wreck.execute("block-export-add", **arguments)
        socket_path = f"{wreck.machine.private_directory}/s"
        await wreck.note(Reversal(kind=ReversalKind.STOP_NBD, names=(socket_path, *EXPORTS)))
        assert await wreck.recover()
        assert await wreck.export_ids() == ["other"]
        assert not {"nbd-server-stop", "block-export-del"} & set(wreck.qmp_log)

    PulledWreck().play(scene)


# -- both, and killed --------------------------------------------------------------------------


def test_killed_pull_is_taken_out_whole_and_a_second_time_changes_nothing() -> None:
    async def scene(wreck: PulledWreck) -> None:
        own = wreck.used_nodes()
        await wreck.be_killed(exposed=True)
        assert await wreck.recover()
        await _assert_all_out(wreck, own)
        wreck.qmp_log.clear()
        await wreck.note(*wreck.noted)
        assert await wreck.recover()
        await _assert_all_out(wreck, own)
        changing = {"qom-set", "blockdev-del", "block-export-del", "nbd-server-stop"}
        assert not changing & set(wreck.qmp_log)

    PulledWreck().play(scene)


async def _assert_all_out(wreck: PulledWreck, own: Sequence[str]) -> None:
    assert wreck.used_nodes() == own
    assert await wreck.left_nodes() == set()
    assert await wreck.export_ids() == []
    assert wreck.node.fleecing_records.get(100, []) == []
    assert wreck.journals.journals == {}
    await wreck.assert_guest_writes_on()


@pytest.mark.parametrize(
    "kinds",
    [
        (ReversalKind.RELEASE_DISK,),
        (ReversalKind.STOP_NBD,),
        (ReversalKind.RELEASE_DISK, ReversalKind.STOP_NBD),
    ],
    ids=lambda kinds: "+".join(kind.value for kind in kinds),
)
def test_recovery_killed_at_any_command_is_completed_by_the_next(
    kinds: tuple[ReversalKind, ...],
) -> None:
    exposed = ReversalKind.STOP_NBD in kinds
    reached: list[bool] = []

    async def scene(wreck: PulledWreck) -> None:
        own = wreck.used_nodes()
        await wreck.be_killed(exposed=exposed)
        noted = [reversal for reversal in wreck.noted if reversal.kind in kinds]
        await wreck.forget_all_but(noted)
        reached.append(await wreck.recover_killed_at(len(reached) + 1))
        assert not reached[-1] or wreck.left() != []
        assert await wreck.recover()
        if ReversalKind.RELEASE_DISK in kinds:
            assert wreck.used_nodes() == own
            assert await wreck.left_nodes() == set()
        assert not exposed or await wreck.export_ids() == []
        await wreck.assert_guest_writes_on()

    while not reached or reached[-1]:
        PulledWreck().play(scene)
    # Every export and every node was once the last that was taken out.
    assert len(reached) > len(kinds) * 5
