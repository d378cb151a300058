"""Faults as data, and the wrappers that make them happen at the ports of a system under test."""

from vzsim.faults.kinds import ACTS, KILLS, KINDS_OF, LENGTHS_S, Family, Kind
from vzsim.faults.plane import Plane, ToolKilled
from vzsim.faults.script import Fault, FaultScript, bare_site

__all__ = [
    "ACTS",
    "KILLS",
    "KINDS_OF",
    "LENGTHS_S",
    "Family",
    "Fault",
    "FaultScript",
    "Kind",
    "Plane",
    "ToolKilled",
    "bare_site",
]
