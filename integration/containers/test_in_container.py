"""Scenarios in a container: a machine that has Debian's QEMU, this project, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.conftest import Surroundings

SCENARIOS = (
    "live_backup/test_live_backup.py",
    "modes/test_modes.py",
)


@pytest.fixture(scope="module")
def container(machine: Surroundings) -> Iterator[object]:
    """One container for all scenarios; without an engine they run on the host alone."""
    if machine.docker.missing:
        pytest.skip(f"NOT covered: {machine.docker.missing}")
    if machine.guest is None:
        pytest.skip(machine.guest_missing)
    from integration.containers.engine import (
        NoImage,
        build_upstream_image,
        own_python,
        python_of,
        scenario_container,
    )

    try:
        image = build_upstream_image()
    except NoImage as error:
        pytest.skip(f"NOT covered: {error}")
    with scenario_container(image, machine.guest) as container:
        if python_of(container) != own_python():
            pytest.skip(f"NOT covered: the image's Python is not {own_python()}")
        yield container


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda name: name.partition("/")[0])
def test_scenario_holds_in_a_container(container: object, scenario: str) -> None:
    from integration.containers.engine import DockerContainer, run_scenarios

    assert isinstance(container, DockerContainer)
    code, report = run_scenarios(container, [scenario])
    assert code == 0, report
    assert "skipped" not in report, report
