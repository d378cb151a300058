"""One subject per test and feature: the real ones, with the behaviours of ``tests/contract``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.contract.real_agent import REAL_AGENTS
from integration.contract.reals import REALS
from tests.contract.agents import AgentSubject
from tests.contract.selection import ask_subjects
from tests.contract.subject import Subject


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    ask_subjects(metafunc, REALS)
    ask_subjects(metafunc, REAL_AGENTS, fixture="agent_subject", scope="session")


@pytest.fixture
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    with REALS[request.param].make() as made:
        yield made


@pytest.fixture(scope="session")
def agent_subject(request: pytest.FixtureRequest) -> Iterator[AgentSubject]:
    with REAL_AGENTS[request.param].make() as made:
        yield made
