"""The platform's notification system: what it is asked, and when it did not tell anybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.outlets.messages import MESSAGE
from vzdump_qemu.errors import BackupError
from vzdump_qemu.outlets.pve import PlatformOutlet


@dataclass
class FakeBridge:
    """Keeps calls, prints what it was told to."""

    lines: Sequence[str] = ()
    error: str = ""

    def __post_init__(self) -> None:
        self.calls: list[tuple[str, Mapping[str, Any]]] = []

    async def call(
        self,
        method: str,
        params: Mapping[str, Any],
        *,
        timeout_s: float,
        error_type: type[BackupError],
    ) -> FakeBridge:
        self.calls.append((method, params))
        if self.error:
            raise error_type(self.error)
        return self


async def test_library_is_asked_once_with_template_and_fields() -> None:
    bridge = FakeBridge()
    await PlatformOutlet(bridge).send(MESSAGE)
    assert bridge.calls == [
        (
            "notify",
            {
                "severity": "info",
                "template": "vzdump",
                "data": {"status-text": "backup successful", "total-size": 5},
                "fields": {"type": "vzdump", "hostname": "pve1"},
            },
        )
    ]


async def test_target_that_the_library_could_not_tell_is_an_error() -> None:
    lines = ["sending", "ERROR: could not notify via target `mail-to-root`: no address"]
    with pytest.raises(BackupError, match=r"^ERROR: could not notify via target `mail-to-root`"):
        await PlatformOutlet(FakeBridge(lines=lines)).send(MESSAGE)


async def test_other_lines_of_the_library_are_no_error() -> None:
    await PlatformOutlet(FakeBridge(lines=["notified via target `mail-to-root`"])).send(MESSAGE)


async def test_error_of_the_library_comes_out() -> None:
    with pytest.raises(BackupError, match=r"^no quorum$"):
        await PlatformOutlet(FakeBridge(error="no quorum")).send(MESSAGE)
