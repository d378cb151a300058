"""Machines for this folder: built once, whatever the number of tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from integration.conftest import Surroundings

if TYPE_CHECKING:
    from integration.debian_package.machines import Machine


@pytest.fixture(scope="session")
def machines(machine: Surroundings) -> Iterator[dict[str, Machine]]:
    """By release; without an engine that runs containers there are none."""
    if machine.docker.missing:
        pytest.skip(f"NOT covered: {machine.docker.missing}")
    from integration.containers.engine import NoImage
    from integration.debian_package.machines import installed_machines

    try:
        with installed_machines() as installed:
            yield installed
    except NoImage as error:
        pytest.skip(f"NOT covered: {error}")


@pytest.fixture(params=["bookworm", "trixie"])
def installed(request: pytest.FixtureRequest, machines: dict[str, Machine]) -> Machine:
    """The machine of each release in turn."""
    return machines[request.param]


@pytest.fixture(scope="session")
def booted(machines: dict[str, Machine]) -> Iterator[Machine]:
    """Debian 12 with systemd as its first process: the older one understands less."""
    from integration.debian_package.machines import booted_machine

    with booted_machine(machines["bookworm"]) as it:
        if isinstance(it, str):
            pytest.skip(f"NOT covered: {it}")
        yield it
