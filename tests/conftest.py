"""What the whole test run says about itself."""

from __future__ import annotations

import shutil

OPTIONAL_PROGRAMS = ("qemu-system-x86_64", "qemu-img", "perl")


def pytest_report_header() -> list[str]:
    """Name the programs that some tests need, so that no skip goes unseen."""
    missing = [name for name in OPTIONAL_PROGRAMS if shutil.which(name) is None]
    if not missing:
        return [f"programs for real tests: {', '.join(OPTIONAL_PROGRAMS)}"]
    return [f"not installed, tests that need them are skipped: {', '.join(missing)}"]
