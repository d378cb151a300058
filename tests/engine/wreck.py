"""A node whose tool was killed: what it noted, what it left, and what a recovery does with it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.engine.world import World
from vzdump_qemu import events
from vzdump_qemu.engine.recovery import recover_vm
from vzdump_qemu.journal_ports import Journal, Reversal, ReversalKind
from vzsim.fakeqmp.script import BackupRules, Script
from vzsim.world.journal import SimulatedJournal
from vzsim.world.pipes import SimulatedPipe

FD_NAME = "backup-12345678"
TARGET = f"/dev/fdname/{FD_NAME}"
TEMP_FILE = "/var/lib/vz/dump/vzdump-qemu-100.vma.dat"
TEMP_TREE = "/var/lib/vz/dump/vzdump-qemu-100.tmp"
FLEECING = "local:100/vm-100-fleece-0.qcow2"
NODE = "drive-tpmstate0-backup"
SLOW_JOB = Script(backup=BackupRules(bytes_per_s=1 << 16))

THAW = Reversal(kind=ReversalKind.THAW)
CANCEL = Reversal(kind=ReversalKind.CANCEL_JOB, names=(TARGET,))
CLOSE_FD = Reversal(kind=ReversalKind.CLOSE_FD, names=(FD_NAME,))
RESUME = Reversal(kind=ReversalKind.RESUME)
START = Reversal(kind=ReversalKind.START)
STOP_QEMU = Reversal(kind=ReversalKind.STOP_QEMU)
DETACH = Reversal(kind=ReversalKind.DETACH, names=(NODE,))
FREE = Reversal(kind=ReversalKind.FREE_FLEECING, names=(FLEECING,))
REMOVE_FILE = Reversal(kind=ReversalKind.REMOVE_FILE, names=(TEMP_FILE,))
REMOVE_TREE = Reversal(kind=ReversalKind.REMOVE_TREE, names=(TEMP_TREE,))
UNLOCK = Reversal(kind=ReversalKind.UNLOCK)


class Killed(BaseException):
    """The recovering process is gone; nothing of it runs on."""


@dataclass
class KillableJournal:
    """Ends its process at one strike: the act is done, the strike is or is not written."""

    journal: SimulatedJournal
    at_strike: int
    written: bool
    strike_count: int = 0

    @property
    def open_entries(self) -> Sequence[tuple[int, Reversal]]:
        return self.journal.open_entries

    async def note(self, reversal: Reversal) -> int:
        return await self.journal.note(reversal)

    def strike(self, index: int) -> None:
        self.strike_count += 1
        if self.strike_count != self.at_strike:
            self.journal.strike(index)
            return
        if self.written:
            self.journal.strike(index)
        raise Killed


@dataclass
class Wreck(World):
    """A node whose tool was killed; what is left is arranged by each scene."""

    draining: asyncio.Future[None] = field(init=False, repr=False)

    async def note(self, *reversals: Reversal) -> None:
        """What the dead run noted, in this order."""
        async with self.journals.open(100) as journal:
            for reversal in reversals:
                await journal.note(reversal)

    def left(self) -> list[Reversal]:
        """What the journal still lists."""
        journal = self.journals.journals.get(100)
        return [] if journal is None else [reversal for _, reversal in journal.open_entries]

    async def recover(self, *, holds_global_lock: bool = False) -> bool:
        async with self.journals.open(100) as journal:
            return await self.recover_with(journal, holds_global_lock=holds_global_lock)

    async def recover_with(self, journal: Journal, *, holds_global_lock: bool = False) -> bool:
        return await recover_vm(
            self.ports, self.machine, journal, holds_global_lock=holds_global_lock
        )

    async def execute(self, command: str, **arguments: Any) -> Any:
        async with self.machine.connect_qmp(timeout_s=5) as qmp:
            return await qmp.execute(command, arguments, timeout_s=5)

    async def freeze(self) -> None:
        async with self.machine.connect_agent(timeout_s=5) as agent:
            await agent.execute("guest-fsfreeze-freeze", timeout_s=5)

    async def pass_fd(self) -> SimulatedPipe:
        """A descriptor inside QEMU, its reader still there (the guardian's)."""
        pipe = SimulatedPipe()
        fd = self.host.descriptors.open(pipe)
        async with self.machine.connect_qmp(timeout_s=5) as qmp:
            await qmp.execute_with_fd("getfd", {"fdname": FD_NAME}, fd, timeout_s=5)
        self.host.descriptors.close(fd)
        return pipe

    async def start_job(self) -> None:
        """A job into that descriptor, whose stream somebody drains."""
        pipe = await self.pass_fd()
        await self.execute("backup", **{"backup-file": TARGET, "devlist": "drive-scsi0"})

        async def drain() -> None:
            while await pipe.read(1 << 20):
                pass

        self.draining = asyncio.ensure_future(drain())

    async def attach(self) -> None:
        """The node of a TPM state."""
        path = sorted(self.images)[1]
        child = {"driver": "file", "filename": path}
        await self.execute(
            "blockdev-add",
            **{"driver": "raw", "node-name": NODE, "read-only": True, "file": child},
        )

    async def node_names(self) -> set[str]:
        return {node["node-name"] for node in await self.execute("query-named-block-nodes")}

    def job_status(self) -> str:
        return str(self.machine.process.backup.query().get("status"))

    def is_frozen(self) -> bool:
        agent = self.machine.process.agent
        return agent is not None and agent.is_frozen

    def failures(self) -> list[str]:
        return [event.what for event in self.told_of(events.UndoFailed)]

    def put_back(self) -> list[str]:
        """Kinds in the order they were put back."""
        prefix = "put back after an earlier run: "
        return [event.text.removeprefix(prefix).split()[0] for event in self.told_of(events.Warned)]
