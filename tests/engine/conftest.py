"""The simulated node of the engine tests, as a fixture."""

from __future__ import annotations

import pytest

from tests.engine.world import World


@pytest.fixture
def world() -> World:
    """A running VM with two disks and an agent."""
    return World()
