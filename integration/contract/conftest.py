"""One subject per test and feature: the real ones, with the behaviours of ``tests/contract``."""

from __future__ import annotations

import pytest

from integration.contract.real_agent import REAL_AGENTS
from integration.contract.reals import REALS
from tests.contract.selection import ask_subjects, subject_fixture

subject = subject_fixture(REALS)
agent_subject = subject_fixture(REAL_AGENTS, scope="session")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    ask_subjects(metafunc, REALS)
    ask_subjects(metafunc, REAL_AGENTS, fixture="agent_subject", scope="session")
