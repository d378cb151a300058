"""The Protocols through which a job tells people and machines how it ended, with their values.

Owns what crosses between those who know how a job went and those who send; who is told is
`plan.notification`'s. Source: host behaviour, section 1.14.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """How a job ended, in every form that somebody takes.

    Attributes:
        subject: one line.
        summary: what happened, without logs, for places with little room.
        text, html: the whole message.
        failed: whether the job or any VM of it failed.
        template_name, template_data: for the platform's notification library, which words it.
        fields: what its rules can match.
    """

    subject: str
    summary: str
    text: str
    html: str
    failed: bool
    template_name: str
    template_data: Mapping[str, Any]
    fields: Mapping[str, str]


class MessageOutlet(Protocol):
    """One way on which a message leaves."""

    @property
    def name(self) -> str:
        """For the log: no address that holds a secret."""
        ...

    async def send(self, message: Message) -> None:
        """Send it once.

        Raises:
            BackupError: it was not taken.
        Cancelled: it may be sent all the same; nothing of ours is left waiting for it.
        """
        ...


class JournalOutlet(Protocol):
    """The host's journal."""

    def write(self, fields: Mapping[str, str]) -> None:
        """Write one entry; never blocks, never raises. Without a journal nothing happens."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One figure, as a monitoring system keeps it.

    Attributes:
        text: what the figure is, the same for all of that name.
        labels: which VM (``vmid``) or job (``job_id``) it is of, and which part of it.
    """

    name: str
    text: str
    value: float
    labels: Mapping[str, str]


class MeasurementOutlet(Protocol):
    """Where figures are kept until the next job."""

    async def write(self, measurements: Sequence[Measurement], *, lasting: Collection[str]) -> None:
        """Replace all figures of the VMs and jobs named in these; those of others stay.

        Args:
            lasting: names of figures that stay as well where there is no new one.
        Raises:
            BackupError: the earlier figures stay as they were.
        """
        ...


class JobNotifier(Protocol):
    """Tells whoever is to know how a job ended."""

    async def job_ended(self) -> None:
        """Tell it, once per job, after the last event of the job; never raises, is bounded."""
        ...


class _Nobody:
    """Nobody is to know."""

    async def job_ended(self) -> None:
        return


NOBODY: JobNotifier = _Nobody()
"""For jobs whose caller looks at the result by himself."""
