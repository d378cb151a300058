"""A server in memory with a clock that stands still, and chance that repeats."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from vzsim.fakepbs import FakePbs, PbsConfig, PbsSurroundings


@dataclass
class HandClock:
    """Seconds since the epoch, moved by the test."""

    now_s: float = 1_700_000_100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def pbs(clock: HandClock) -> FakePbs:
    surroundings = PbsSurroundings(now_s=clock, chance=random.Random(1).randbytes)
    return FakePbs(PbsConfig(refusal_delay_s=0.0), surroundings)
