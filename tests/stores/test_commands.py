"""Running real programs."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from vzdump_qemu.stores.commands import OUTPUT_BYTES_MAX, FilterProcess, SystemCommandRunner

WAIT_S = 20.0


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.to_thread(threading.Event().wait, 0.005)


def _facts_of(process_id: int) -> list[str]:
    """State and further fields of a process; empty once it is gone."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()
    except FileNotFoundError:
        return []


def _start_of(process_id: int) -> str:
    """When it was started: ids are given to others again, also while a test waits."""
    return _facts_of(process_id)[19]


def _is_alive(process_id: int, start: str = "") -> bool:
    facts = _facts_of(process_id)
    return bool(facts) and facts[0] != "Z" and facts[19] == (start or facts[19])


async def test_run_program_gives_status_and_both_outputs() -> None:
    runner = SystemCommandRunner()
    status, lines = await runner.run(["sh", "-c", "echo one; echo two >&2; exit 7"])
    assert status == 7
    assert lines == ["one", "two"]


async def test_run_program_uses_the_c_locale_and_no_input() -> None:
    runner = SystemCommandRunner(environment={"PATH": os.environ["PATH"], "LC_ALL": "de_DE"})
    assert await runner.run(["sh", "-c", "echo $LC_ALL; cat"]) == (0, ["C"])


async def test_run_gives_one_program_what_the_others_do_not_get() -> None:
    runner = SystemCommandRunner()
    argv = ["sh", "-c", "echo $TOKEN $LC_ALL"]
    assert await runner.run(argv, environment={"TOKEN": "t"}) == (0, ["t C"])
    assert await runner.run(argv) == (0, ["C"])


async def test_run_signalled_program_gives_a_negative_status() -> None:
    status, lines = await SystemCommandRunner().run(["sh", "-c", "kill -9 $$"])
    assert (status, lines) == (-9, [])


async def test_run_missing_program_gives_127() -> None:
    status, lines = await SystemCommandRunner().run(["/nonexistent/program"])
    assert status == 127
    assert lines == ["cannot run '/nonexistent/program': No such file or directory"]


async def test_run_directory_as_program_gives_126(tmp_path: Path) -> None:
    status, [line] = await SystemCommandRunner().run([str(tmp_path)])
    assert status == 126
    assert line.endswith("Permission denied")


async def test_run_chatty_program_keeps_the_last_output() -> None:
    script = f"yes 0123456789 | head -c {3 * OUTPUT_BYTES_MAX}; echo; echo last"
    status, lines = await SystemCommandRunner().run(["sh", "-c", script])
    assert status == 0
    assert lines[-1] == "last"
    assert sum(len(line) + 1 for line in lines) <= OUTPUT_BYTES_MAX + 1


async def test_run_passes_only_the_descriptors_named() -> None:
    read_fd, write_fd = os.pipe()
    other_fd = os.dup(read_fd)
    os.set_inheritable(other_fd, True)
    script = f"echo text >/proc/self/fd/{write_fd}; test -e /proc/self/fd/{other_fd}"
    status, _ = await SystemCommandRunner().run(["sh", "-c", script], pass_fds=(write_fd,))
    assert status == 1
    assert os.read(read_fd, 100) == b"text\n"
    for fd in (read_fd, write_fd, other_fd):
        os.close(fd)


async def test_run_does_not_wait_for_a_grandchild_with_our_pipe() -> None:
    async with asyncio.timeout(WAIT_S):
        status, lines = await SystemCommandRunner().run(["sh", "-c", "sleep 1000 & echo $!"])
    assert status == 0
    os.kill(int(lines[0]), signal.SIGKILL)


@pytest.mark.parametrize("trap", ["", "trap '' TERM; "], ids=["polite", "stubborn"])
async def test_run_cancelled_ends_and_reaps_the_group(tmp_path: Path, trap: str) -> None:
    ids_path = tmp_path / "ids"
    script = f"{trap}sleep 1000 & echo $$ $! > {ids_path}.new; mv {ids_path}.new {ids_path}; wait"
    running = asyncio.create_task(
        SystemCommandRunner(term_grace_s=0.1).run(["sh", "-c", f"{script}; sleep 1000"])
    )
    await _until(ids_path.exists)
    starts = {int(word): _start_of(int(word)) for word in ids_path.read_text().split()}
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await _until(lambda: not any(_is_alive(*one) for one in starts.items()))
    assert not _facts_of(next(iter(starts)))


def test_find_program_gives_its_path_or_none(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.touch(mode=0o755)
    runner = SystemCommandRunner(environment={"PATH": str(tmp_path)})
    assert runner.find("tool") == str(tool)
    assert runner.find("sh") is None


def _start_filter(script: str) -> FilterProcess:
    null_fd = os.open("/dev/null", os.O_RDWR)
    try:
        return FilterProcess(["sh", "-c", script], stdin_fd=null_fd, stdout_fd=null_fd)
    finally:
        os.close(null_fd)


def test_filter_exit_tells_status_and_last_words() -> None:
    end = _start_filter("echo first >&2; echo second >&2; echo >&2; exit 9").ended.result(WAIT_S)
    assert (end.status, end.signal_number, end.last_words) == (9, 0, "second")
    assert not end.is_clean


def test_filter_exit_does_not_wait_for_a_grandchild() -> None:
    end = _start_filter("sleep 1000 & echo $! >&2").ended.result(WAIT_S)
    assert end.is_clean
    os.kill(int(end.last_words), signal.SIGKILL)


def test_filter_killed_takes_its_group_along_and_is_reaped() -> None:
    read_fd, write_fd = os.pipe()
    process = FilterProcess(
        ["sh", "-c", "sleep 1000 & echo $$; wait"], stdin_fd=read_fd, stdout_fd=write_fd
    )
    os.close(write_fd)
    shell_id = int(os.read(read_fd, 100))
    process.kill()
    end = process.ended.result(WAIT_S)
    assert (end.status, end.signal_number) == (0, signal.SIGKILL)
    process.kill()
    assert not os.path.exists(f"/proc/{shell_id}")
    # The end of the pipe: no process of the group holds it any more.
    assert os.read(read_fd, 100) == b""
    os.close(read_fd)


def test_filter_many_words_are_bounded_and_do_not_block_it() -> None:
    end = _start_filter("yes words | head -c 1000000 >&2; echo >&2; echo end >&2").ended.result(
        WAIT_S
    )
    assert end.last_words == "end"
