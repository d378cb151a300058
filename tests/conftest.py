"""What the whole test run says about itself."""

from __future__ import annotations

import shutil

import pytest

from tests.contract.selection import BEHAVIOUR_MODULES, header_lines

pytest.register_assert_rewrite(*BEHAVIOUR_MODULES)

OPTIONAL_PROGRAMS = ("qemu-system-x86_64", "qemu-img", "perl")


def pytest_report_header() -> list[str]:
    """Name the programs that some tests need, so that no skip goes unseen."""
    from tests.contract.agent_fakes import FAKE_AGENTS
    from tests.contract.fakes import FAKES

    contract = header_lines(FAKES) + header_lines(FAKE_AGENTS)
    missing = [name for name in OPTIONAL_PROGRAMS if shutil.which(name) is None]
    if not missing:
        return [f"programs for real tests: {', '.join(OPTIONAL_PROGRAMS)}", *contract]
    return [f"not installed, tests that need them are skipped: {', '.join(missing)}", *contract]


@pytest.fixture
def qemu_binary() -> str:
    """Path of a real QEMU; the test is skipped, with the reason, where there is none."""
    path = shutil.which("qemu-system-x86_64")
    if path is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    return path
