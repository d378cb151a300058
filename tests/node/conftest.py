"""Folders laid out like a node, and what stands in for the platform's library."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sockets import short_place
from vzdump_qemu.node.bridge import PveBridge


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """Short enough for sockets below it whatever the test is called."""
    with short_place() as directory:
        yield directory


@pytest.fixture
def stub_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Any]]:
    """The calls that the stubs of the Perl library saw so far."""
    path = tmp_path / "calls"
    path.touch()
    monkeypatch.setenv("PVE_STUB_CALLS", str(path))
    return lambda: [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
async def bridge(stub_calls: Callable[[], list[Any]]) -> AsyncIterator[PveBridge]:
    """The real script under the real Perl, with stub modules in place of the platform's."""
    if shutil.which("perl") is None:
        pytest.skip("perl is not installed")
    stubs = Path(__file__).parent / "perl_stubs"
    client = PveBridge(("perl", f"-I{stubs}"))
    yield client
    await client.close()
