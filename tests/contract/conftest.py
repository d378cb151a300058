"""One subject per test and feature: the simulated ones. See `subjects` for who is asked what."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.agent_fakes import FAKE_AGENTS
from tests.contract.agents import AgentSubject
from tests.contract.fakes import FAKES
from tests.contract.selection import ask_subjects
from tests.contract.subject import Subject


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    ask_subjects(metafunc, FAKES)
    ask_subjects(metafunc, FAKE_AGENTS, fixture="agent_subject")


@pytest.fixture
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    with FAKES[request.param].make() as made:
        yield made


@pytest.fixture
def agent_subject(request: pytest.FixtureRequest) -> Iterator[AgentSubject]:
    with FAKE_AGENTS[request.param].make() as made:
        yield made
