"""What a system under test has to offer to be driven over several VMs at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from vzsim.system import Outcome, System, SystemPorts


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPorts(SystemPorts):
    """What it gets to work with; `tell` takes the lines that are about no VM.

    Attributes:
        tell_of_run: takes one line of the log of a VM's run.
        tell_end_of_run: takes whether a VM's run ended well, as its operator is told.
        tell_summary: takes the VMs that failed and the job's own error, as the operator is told.
        send: takes a message about the job: subject, text, whether anything failed.
    """

    tell_of_run: Callable[[int, str], None]
    tell_end_of_run: Callable[[int, bool], None]
    tell_summary: Callable[[Sequence[int], str], None]
    send: Callable[[str, str, bool], None]


class VmOutcome(Outcome, Protocol):
    """What a system says about one VM of a job."""

    @property
    def vmid(self) -> int: ...


class BatchOutcome(Protocol):
    """What a system says about a job; `error` is the job's own, empty for none."""

    @property
    def error(self) -> str: ...

    @property
    def runs(self) -> Sequence[VmOutcome]: ...


@runtime_checkable
class BatchSystem(System, Protocol):
    """A backup tool on simulated ports that backs up several VMs in one job."""

    async def back_up_all(
        self, ports: BatchPorts, options: Mapping[str, Any], vmids: Sequence[int]
    ) -> BatchOutcome:
        """Back up these VMs; cancelled when a signal comes."""
        ...
