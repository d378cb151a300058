"""Several simulated VMs on one node, each of them a scene, with one file system and one job lock.

Owns what holds for all of them: beginning, watching those that are being worked on, a power loss.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping

from vzsim.event_log import EventLog
from vzsim.faults import Kind
from vzsim.kernel import SimulatedLoop
from vzsim.scenario import Scenario
from vzsim.scene import VMID, Common, Scene, vm_of_path


class BatchWorld:
    """The world of one job.

    Attributes:
        most_at_once: how many VMs were seen with the tool's lock at one instant while their runs
            were under way.
        began_s: when the tool first touched a VM, and `ended_s` when it told the end of its run.
        on_power_loss: called with nothing when the node goes off.
    """

    def __init__(self, scenario: Scenario, seed: int, loop: SimulatedLoop) -> None:
        self.common = Common()
        self.log = EventLog(loop.time_ns)
        self.scenes: dict[int, Scene] = {}
        for vmid in range(VMID, VMID + scenario.vm_count):
            scene = Scene(scenario, seed, loop, vmid=vmid, common=self.common)
            scene.log = self.log
            self.scenes[vmid] = scene
        self.first = self.scenes[VMID]
        for scene in self.scenes.values():
            scene.node.global_lock = self.first.node.global_lock
        self._loop = loop
        self._watched: set[int] = set()
        self.on_power_loss: Callable[[], None] = lambda: None
        self.most_at_once = 0
        self.began_s: dict[int, float] = {}
        self.ended_s: dict[int, float] = {}

    @property
    def vmids(self) -> tuple[int, ...]:
        return tuple(self.scenes)

    async def begin(self) -> None:
        """Everything is up as the scenario says."""
        await asyncio.gather(*(scene.begin() for scene in self.scenes.values()))

    async def heal(self, vmids: Iterable[int]) -> None:
        """These VMs, and what they share, work again."""
        await asyncio.gather(*(self.scenes[vmid].heal() for vmid in vmids))

    # -- watching ------------------------------------------------------------------------------

    def forget_runs(self) -> None:
        """Another job begins."""
        self._watched.clear()
        self.began_s.clear()
        self.ended_s.clear()
        self.most_at_once = 0

    def touched(self, vmid: int) -> None:
        """The tool does something with a VM (or with none: 0)."""
        if vmid and vmid not in self._watched:
            self._watched.add(vmid)
            self.began_s.setdefault(vmid, self._loop.time())

    def run_ended(self, vmid: int, *, is_odd: bool) -> None:
        """As the tool says; a VM to which something odd happened is watched on."""
        self.ended_s.setdefault(vmid, self._loop.time())
        self.scenes[vmid].look()
        if not is_odd:
            self._watched.discard(vmid)

    def look(self) -> None:
        """Notice what holds at this instant of the VMs that are being worked on."""
        count = 0
        # (A set of small numbers; what is noticed of one does not depend on another.)
        for vmid in sorted(self._watched):
            scene = self.scenes[vmid]
            scene.look()
            lock_log = scene.node.lock_log
            if lock_log and lock_log[-1].startswith("lock") and vmid not in self.ended_s:
                count += 1
        self.most_at_once = max(self.most_at_once, count)

    def look_at_all(self) -> None:
        """Notice what holds at this instant of every VM."""
        for scene in self.scenes.values():
            scene.look()

    # -- what others do ------------------------------------------------------------------------

    def actors_of(self, vmid: int) -> Mapping[Kind, Callable[[float], None]]:
        """At a moment of one VM's run; at one of the job's (0) the first VM is concerned."""
        scene = self.scenes.get(vmid, self.first)
        # Second runs are `vzsim.single_trial`'s: here the node's lock would only keep them waiting.
        return {
            **scene.actors(),
            Kind.POWER_LOSS: lambda length_s: self.lose_power(),
            Kind.SECOND_RUN: lambda length_s: None,
        }

    def guest_stands(self, vmid: int) -> bool:
        """Whether a guest was found running and does not run now."""
        return self.scenes[vmid].guest_stands(vmid)

    def lose_power(self) -> None:
        """All processes on the node end, and what was not synced is lost or not."""
        self.on_power_loss()
        for scene in reversed(self.scenes.values()):
            scene.others.go_off(with_files=scene is self.first)

    # -- rest ----------------------------------------------------------------------------------

    def stray_files(self, own: Collection[str]) -> tuple[str, ...]:
        """Files that are no VM's and were not there before."""
        files = self.common.files.files
        return tuple(path for path in sorted(files) if path not in own and not vm_of_path(path))

    def dissolve(self) -> None:
        """Nobody looks at this world again."""
        for scene in self.scenes.values():
            scene.dissolve()
        vars(self).clear()
