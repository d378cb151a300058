"""What the whole test run says about itself."""

from __future__ import annotations

import shutil

import pytest

# Behaviours are shared with integration: their asserts shall speak as those of tests do.
pytest.register_assert_rewrite(
    *(f"tests.contract.{name}" for name in ("protocol", "machine", "blocks", "jobs", "agents"))
)

OPTIONAL_PROGRAMS = ("qemu-system-x86_64", "qemu-img", "perl")


def pytest_report_header() -> list[str]:
    """Name the programs that some tests need, so that no skip goes unseen."""
    from tests.contract.agent_fakes import FAKE_AGENTS
    from tests.contract.fakes import FAKES
    from tests.contract.selection import header_lines

    contract = header_lines(FAKES) + header_lines(FAKE_AGENTS)
    missing = [name for name in OPTIONAL_PROGRAMS if shutil.which(name) is None]
    if not missing:
        return [f"programs for real tests: {', '.join(OPTIONAL_PROGRAMS)}", *contract]
    return [f"not installed, tests that need them are skipped: {', '.join(missing)}", *contract]
