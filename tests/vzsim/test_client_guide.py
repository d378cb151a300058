"""The example of ``docs/testing-your-client.md`` is run as a reader would run it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "testing-your-client.md"


def _files_of(text: str) -> dict[str, str]:
    """Code blocks of a page whose first line names a file."""
    blocks = re.findall(r"^```python\n# (\S+)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return dict(blocks)


@pytest.mark.slow
def test_example_of_the_guide_passes(tmp_path: Path) -> None:
    files = _files_of(GUIDE.read_text(encoding="utf-8"))
    assert set(files) == {
        "my_client.py",
        "test_my_client.py",
        "test_async_client.py",
        "my_pbs_client.py",
        "test_my_pbs_client.py",
        "test_both.py",
        "test_waiting.py",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    test_count = sum(content.count("\ndef test_") for content in files.values())
    assert f"{test_count} passed" in done.stdout
