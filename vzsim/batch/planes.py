"""Fault planes of one tool that works on several VMs: the job's own, and one per VM.

Owns whose a fault of a script is (``vm117/backup#1: error``), and that the tool dies at all of them
at once. What happens at a site is `vzsim.faults.plane`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vzsim.event_log import EventLog, Lane
from vzsim.faults import KILLS, Family, Fault, FaultScript, Kind, Plane

JOB_WIDE = KILLS | {
    Kind.CANCEL_TOOL,
    Kind.CANCEL_TOOL_AFTER,
    Kind.CLOCK_BACK,
    Kind.CLOCK_FORWARD,
    Kind.SUMMER_BEGINS,
    Kind.SUMMER_ENDS,
}
"""What happens to all VMs wherever it comes."""


def vm_prefix(vmid: int) -> str:
    """Stands before the sites of one VM."""
    return f"vm{vmid}/"


def split_script(script: FaultScript, vmids: Sequence[int]) -> dict[int, FaultScript]:
    """The faults of each of these VMs that has any, and of the job (0), without their prefixes."""
    known = {"": 0, **{f"vm{vmid}": vmid for vmid in vmids}}
    found: dict[int, list[Fault]] = {}
    for fault in script.faults:
        prefix, _, site = fault.site.rpartition("/")
        if prefix in known:
            found.setdefault(known[prefix], []).append(replace(fault, site=site))
    return {vmid: FaultScript(tuple(faults)) for vmid, faults in found.items()}


class _VmLog(EventLog):
    """Lines about one VM in the log of all."""

    def __init__(self, inner: EventLog, prefix: str) -> None:
        self._inner = inner
        self._prefix = prefix

    def tell(self, lane: Lane, text: str) -> None:
        """Add one line at this instant."""
        self._inner.tell(lane, self._prefix + text)


class _Part(Plane):
    """The sites of one VM, or those of the job."""

    def __init__(
        self, whole: Planes, vmid: int, script: FaultScript, log: EventLog, *, prefix: str
    ) -> None:
        super().__init__(script, log, prefix=prefix)
        self._whole = whole
        self._vmid = vmid
        self._on_visit = whole.on_visit

    def kill(self) -> None:
        """As the plane says, everywhere."""
        self._whole.kill()

    def _visit(self, site: str, family: Family) -> tuple[str, list[Fault]]:
        self._on_visit(self._vmid)
        return super()._visit(site, family)


class Planes:
    """All sites of one tool.

    Attributes:
        job: the sites that belong to no VM, and `of_vm` those of each.
        on_visit: called with the VM (or 0) at each use of a site.

    Args:
        prefix: stands before the names of all sites, after the VM's own.
    """

    def __init__(
        self,
        script: FaultScript,
        log: EventLog,
        vmids: Sequence[int],
        *,
        prefix: str = "",
        on_visit: Callable[[int], None] = lambda vmid: None,
    ) -> None:
        self._log = log
        self.on_visit = on_visit
        self._scripts = scripts = split_script(script, vmids)
        nothing = FaultScript()
        self.job: Plane = _Part(self, 0, scripts.get(0, nothing), log, prefix=prefix)
        self.of_vm: Mapping[int, Plane] = {
            vmid: _Part(
                self,
                vmid,
                scripts.get(vmid, nothing),
                _VmLog(log, vm_prefix(vmid)),
                prefix=prefix,
            )
            for vmid in vmids
        }

    def plane_of(self, vmid: int) -> Plane:
        """Of a VM; the job's for any other number."""
        return self.of_vm.get(vmid, self.job)

    def each(self) -> Iterator[tuple[int, Plane]]:
        """The job's (0), then every VM's."""
        yield 0, self.job
        yield from self.of_vm.items()

    def let_act(self, actors_of: Callable[[int], Mapping[Kind, Callable[[float], None]]]) -> None:
        """Let others act at the moments that the script names; few VMs have one of those."""
        for vmid in self._scripts:
            self.plane_of(vmid).actors = actors_of(vmid)

    @property
    def is_dead(self) -> bool:
        """The tool was killed."""
        return self.job.is_dead

    def kill(self) -> None:
        """SIGKILL: the tool never moves again, on any VM."""
        if self.is_dead:
            return
        self._log.tell(Lane.FAULT, "the tool is dead")
        for _, plane in self.each():
            plane.die()

    def end(self) -> None:
        """This tool's time is over."""
        for _, plane in self.each():
            plane.end()

    def set_tool(self, task: asyncio.Task[Any]) -> None:
        """Who gets the signals."""
        for _, plane in self.each():
            plane.tool = task

    def triggered_for(self, vmid: int) -> tuple[Fault, ...]:
        """What happened to one VM or to all of them, without prefixes."""
        return tuple(
            fault
            for other, plane in self.each()
            for fault in plane.triggered
            if other in (0, vmid) or fault.kind in JOB_WIDE
        )

    def triggered(self) -> Iterator[Fault]:
        """All that happened, as a script would name it."""
        for vmid, plane in self.each():
            prefix = vm_prefix(vmid) if vmid else ""
            for fault in plane.triggered:
                yield replace(fault, site=prefix + fault.site)

    def allowance_s_of(self, vmid: int) -> float:
        """What faults may have cost a VM: its own, and the job's."""
        return self.plane_of(vmid).allowance_s + self.job.allowance_s

    def visit_counts(self) -> dict[str, int]:
        """Uses per site, as a script would name it."""
        return {
            (vm_prefix(vmid) if vmid else "") + site: count
            for vmid, plane in self.each()
            for site, count in plane.visit_counts.items()
        }

    def families(self) -> dict[str, Family]:
        """The family of each site, as a script would name it."""
        return {
            (vm_prefix(vmid) if vmid else "") + site: family
            for vmid, plane in self.each()
            for site, family in plane.families.items()
        }
