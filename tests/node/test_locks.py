"""flock with a bounded wait, and whole rewrites of files."""

from __future__ import annotations

import asyncio
import fcntl
import os

import pytest

from vzdump_qemu.errors import VmLocked
from vzdump_qemu.node import locks
from vzdump_qemu.node.locks import hold_global_flock, hold_vm_flock, replace_file


@pytest.fixture
def held(tmp_path):
    """A lock file that another process would hold."""
    path = tmp_path / "locks" / "lock-100.conf"
    path.parent.mkdir()
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield str(path), file


async def test_vm_flock_busy_too_long_is_locked(held, monkeypatch):
    path, _ = held
    monkeypatch.setattr(locks, "VM_LOCK_TIMEOUT_S", 0.1)
    with pytest.raises(VmLocked) as caught:
        async with hold_vm_flock(path):
            pass
    assert str(caught.value) == f"can't lock file '{path}' - got timeout"


async def test_vm_flock_waits_until_it_is_free(held):
    path, file = held

    async def take():
        async with hold_vm_flock(path):
            return "held"

    task = asyncio.create_task(take())
    await asyncio.sleep(0)
    fcntl.flock(file, fcntl.LOCK_UN)
    assert await task == "held"


async def test_vm_flock_cancelled_wait_leaves_lock_free(held):
    path, file = held

    async def take():
        async with hold_vm_flock(path):
            pass

    task = asyncio.create_task(take())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    fcntl.flock(file, fcntl.LOCK_UN)
    async with hold_vm_flock(path):
        pass


async def test_flock_is_released_on_leaving_and_excludes_others(tmp_path):
    path = str(tmp_path / "new" / "lock-100.conf")
    async with hold_vm_flock(path):
        with pytest.raises(BlockingIOError):
            _take_at_once(path)
    _take_at_once(path)


def _take_at_once(path: str) -> None:
    with open(path) as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_global_lock_without_waiting_is_refused_at_once(held):
    path, _ = held
    with pytest.raises(VmLocked) as caught:
        async with hold_global_flock(path, timeout_s=0):
            pass
    assert str(caught.value) == f"can't acquire lock '{path}' (wait = 0)"


async def test_global_lock_busy_too_long_is_locked(held):
    path, _ = held
    with pytest.raises(VmLocked) as caught:
        async with hold_global_flock(path, timeout_s=0.1):
            pass
    assert str(caught.value) == f"can't acquire lock '{path}' - got timeout"


async def test_global_lock_free_needs_no_wait(tmp_path):
    async with hold_global_flock(str(tmp_path / "vzdump.lock"), timeout_s=0):
        pass


def test_replace_file_swaps_content_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "100.conf"
    path.write_bytes(b"old")
    (tmp_path / "100.conf.tmp.7").write_bytes(b"left over")
    replace_file(str(path), b"new\r\n\xff", process_id=7)
    assert path.read_bytes() == b"new\r\n\xff"
    assert os.listdir(tmp_path) == ["100.conf"]


def test_replace_file_that_fails_keeps_the_old_one(tmp_path):
    path = tmp_path / "100.conf"
    path.mkdir()
    with pytest.raises(OSError):
        replace_file(str(path), b"new", process_id=7)
    assert os.listdir(tmp_path) == ["100.conf"]
