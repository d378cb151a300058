"""Asking a QEMU program whether it has a backup job of its own."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from vzdump_qemu.node.qemu_probe import has_backup_command
from vzdump_qemu.qemu.request_ids import RequestIds
from vzdump_qemu.stores.commands import SystemCommandRunner

STAND_IN = shutil.which("vzsim-qemu", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


async def _ask(binary: str) -> bool | None:
    return await has_backup_command(
        binary, commands=SystemCommandRunner(), request_ids=RequestIds(os.getpid())
    )


async def test_patched_program_is_told_by_its_commands() -> None:
    assert STAND_IN is not None
    assert await _ask(STAND_IN) is True


async def test_stock_program_is_told_by_its_commands(qemu_binary: str) -> None:
    assert await _ask(qemu_binary) is False


async def test_program_that_is_missing_tells_nothing() -> None:
    assert await _ask("/nowhere/qemu") is None


async def test_program_that_is_no_qemu_tells_nothing() -> None:
    assert await _ask("/bin/true") is None
    assert await _ask("/bin/false") is None
