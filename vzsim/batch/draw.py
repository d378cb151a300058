"""Faults of a job over several VMs, drawn by seed: a tenth of the VMs get one each.

Owns which VMs, and that now and then something happens to the whole job as well; what can happen
at a site is `vzsim.faults.draw`'s.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from vzsim.batch.planes import JOB_WIDE, vm_prefix
from vzsim.faults import ACTS, Fault, FaultScript, Kind
from vzsim.faults.draw import Place, faults_at
from vzsim.scene import VMID

_UNLUCKY_SHARE = 10
# Jobs that are cut, or whose clock jumps, among those that are left alone as a whole.
_JOB_WIDE_SHARE = 0.4
# What operators and guests can do is so much that, kind by kind, little would fail by itself.
_OWN_SHARE = 0.6


def spread_places(places: Sequence[Place], vm_count: int) -> Iterator[Place]:
    """The places of the first VM as those of every VM, and those of the job as they are."""
    first = vm_prefix(VMID)
    for place in places:
        if place.site.startswith(first):
            for vmid in range(VMID, VMID + vm_count):
                yield replace(place, site=vm_prefix(vmid) + place.site.removeprefix(first))
        elif "/" not in place.site:
            yield place


def draw_batch_script(
    stream: random.Random, places: Sequence[Place], *, with_job_wide: bool, with_kills: bool
) -> FaultScript:
    """One fault for a tenth of the VMs, at any place each.

    Args:
        with_job_wide: some jobs meet one thing more, which happens to all their VMs.
        with_kills: the tool may be killed then.
    """
    by_vm: dict[str, dict[str, list[Place]]] = {}
    for place in places:
        vm, _, site = place.site.rpartition("/")
        by_vm.setdefault(vm, {}).setdefault(site, []).append(place)
    vms = sorted(vm for vm in by_vm if vm)
    unlucky = sorted(stream.sample(vms, max(1, len(vms) // _UNLUCKY_SHARE)))
    faults = [_draw_fault(stream, by_vm[vm]) for vm in unlucky]
    if with_job_wide and stream.random() < _JOB_WIDE_SHARE:
        anywhere = stream.choice(sorted(places))
        found = faults_at(anywhere, with_kills=with_kills)
        wide = [fault for fault in found if fault.kind in JOB_WIDE]
        faults += [stream.choice(wide)] if wide else []
    return FaultScript(tuple(faults))


def _draw_fault(stream: random.Random, by_site: dict[str, list[Place]]) -> Fault:
    """Of one VM, and of no consequence for others; at any site, whatever it is used for."""
    while True:
        place = stream.choice(by_site[stream.choice(sorted(by_site))])
        options = [
            fault
            for fault in faults_at(place, with_kills=False)
            if fault.kind not in JOB_WIDE and fault.kind is not Kind.SECOND_RUN
        ]
        own = [fault for fault in options if fault.kind not in ACTS]
        if own and stream.random() < _OWN_SHARE:
            options = own
        if options:
            kind = stream.choice(sorted({fault.kind for fault in options}))
            return stream.choice([fault for fault in options if fault.kind is kind])
