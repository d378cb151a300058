"""Fault scripts: what shall go wrong where, as data that reads like a sentence.

``backup#1: reply-lost; agent.thaw#1: stall 40s; cancel-tool@intake.publish`` — faults separated by
semicolons, each a site (a port method, ``#N`` its N-th use, the first if left out), a kind and
perhaps a length of time. Kinds that somebody else does at that moment stand in front, with ``@``.
On a node with several VMs a site of one of them bears its id: ``vm117/backup#1: reply-lost``; a
site without one is the whole job's. Owns the text form; which kinds a site can have is the
catalogue's (`vzsim.faults.kinds`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vzdump_qemu.errors import ConfigError
from vzsim.faults.kinds import ACTS, Kind

_SITE = r"(?P<site>(?:vm[1-9][0-9]*/)?[a-z][a-z0-9_.-]*)(?:#(?P<nth>[1-9][0-9]*))?"
_KIND = r"(?P<kind>[a-z][a-z-]*)(?:\s+(?P<length>[0-9]+(?:\.[0-9]+)?)s)?"
_AT_SITE = re.compile(rf"{_SITE}\s*:\s*{_KIND}\Z")
_BY_OTHERS = re.compile(rf"{_KIND}@{_SITE}\Z")


def bare_site(site: str) -> str:
    """A site without the VM that it belongs to."""
    return site.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Fault:
    """One fault.

    Attributes:
        site: name of the port method, e.g. ``agent.thaw``.
        nth: which use of it, from 1.
        length_s: for kinds that take time; 0 means the kind's own default.
    """

    site: str
    nth: int = 1
    kind: Kind
    length_s: float = 0.0

    def render(self) -> str:
        """The text that parses to this fault."""
        length = f" {self.length_s:g}s" if self.length_s else ""
        if self.kind in ACTS:
            return f"{self.kind.value}{length}@{self.site}#{self.nth}"
        return f"{self.site}#{self.nth}: {self.kind.value}{length}"


@dataclass(frozen=True, slots=True)
class FaultScript:
    """Faults of one run, in no order: each waits for its site."""

    faults: tuple[Fault, ...] = ()

    @classmethod
    def parse(cls, text: str) -> FaultScript:
        """Read a script. Raises ConfigError naming the part that cannot be read."""
        parts = (part.strip() for part in text.split(";"))
        return cls(tuple(_parse_fault(part) for part in parts if part))

    def render(self) -> str:
        """The text that parses to this script."""
        return "; ".join(fault.render() for fault in self.faults)

    def without(self, index: int) -> FaultScript:
        """The same without one fault."""
        return FaultScript(self.faults[:index] + self.faults[index + 1 :])

    def __add__(self, other: FaultScript) -> FaultScript:
        return FaultScript(self.faults + other.faults)


def _parse_fault(text: str) -> Fault:
    found = _AT_SITE.match(text) or _BY_OTHERS.match(text)
    if found is None:
        raise ConfigError(
            f"fault script: cannot read '{text}'",
            hint="write SITE#N: KIND [LENGTHs], or KIND@SITE#N",
        )
    try:
        kind = Kind(found["kind"])
    except ValueError:
        raise ConfigError(f"fault script: unknown kind '{found['kind']}' in '{text}'") from None
    return Fault(
        site=found["site"],
        nth=int(found["nth"] or 1),
        kind=kind,
        length_s=float(found["length"] or 0),
    )
