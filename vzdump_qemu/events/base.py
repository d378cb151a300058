"""The root of all events, and what takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Root of all events."""


Emit = Callable[[Event], None]
"""Takes one event; never blocks, never raises."""

EmitOfRun = Callable[[int], Emit]
"""Gives the voice of one VM's run, by its VMID: so runs that go on at once are told apart."""
