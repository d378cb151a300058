"""One subject per test and feature: the simulated ones. See `selection` for who is asked what."""

from __future__ import annotations

import pytest

from tests.contract.agent_fakes import FAKE_AGENTS
from tests.contract.fakes import FAKES
from tests.contract.selection import ask_subjects, subject_fixture

subject = subject_fixture(FAKES)
agent_subject = subject_fixture(FAKE_AGENTS)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    ask_subjects(metafunc, FAKES)
    ask_subjects(metafunc, FAKE_AGENTS, fixture="agent_subject")
