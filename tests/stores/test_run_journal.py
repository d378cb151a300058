"""Journals on a real file system: durable lines, one living owner, forgotten when empty."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vzdump_qemu.errors import BackupError, ConfigError, VmLocked
from vzdump_qemu.journal_ports import Reversal, ReversalKind
from vzdump_qemu.stores.run_journal import FileJournal, FileJournals

THAW = Reversal(kind=ReversalKind.THAW)
CLOSE_FD = Reversal(kind=ReversalKind.CLOSE_FD, names=("backup-1", "ä\n"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run" / "vzdump-qemu"


@pytest.fixture
def journals(directory: Path) -> FileJournals:
    return FileJournals(str(directory), owner_timeout_s=0.25)


def path_of(directory: Path, vmid: int = 100) -> Path:
    return directory / f"{vmid}.journal"


def leave(directory: Path, text: str | bytes, vmid: int = 100) -> Path:
    """A journal as a killed run left it."""
    directory.mkdir(parents=True, exist_ok=True)
    path = path_of(directory, vmid)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def note_line(index: int, reversal: Reversal) -> str:
    names = list(reversal.names)
    line = {"note": index, "kind": reversal.kind.value, "names": names, "boot": ""}
    return json.dumps(line) + "\n"


@contextmanager
def owned(path: Path) -> Iterator[None]:
    """As another living process owns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(fd)


async def test_note_is_in_the_file_when_it_returns(journals: FileJournals, directory: Path) -> None:
    async with journals.open(100) as journal:
        index = await journal.note(CLOSE_FD)
        assert path_of(directory).read_text() == note_line(index, CLOSE_FD)
        assert journal.open_entries == ((index, CLOSE_FD),)


async def test_note_is_synced_and_a_strike_is_not(
    journals: FileJournals, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    sync = os.fsync

    def count(fd: int) -> None:
        synced.append(fd)
        sync(fd)

    async with journals.open(100) as journal:
        monkeypatch.setattr(os, "fsync", count)
        index = await journal.note(THAW)
        assert len(synced) == 1
        journal.strike(index)
        assert len(synced) == 1


async def test_open_entries_survive_the_owner_and_struck_ones_do_not(
    journals: FileJournals, directory: Path
) -> None:
    async with journals.open(100) as journal:
        thaw = await journal.note(THAW)
        close = await journal.note(CLOSE_FD)
        journal.strike(thaw)
    assert path_of(directory).exists()
    async with journals.open(100) as journal:
        assert journal.open_entries == ((close, CLOSE_FD),)


async def test_index_of_a_struck_entry_is_not_used_again(
    journals: FileJournals, directory: Path
) -> None:
    async with journals.open(100) as journal:
        first = await journal.note(THAW)
        second = await journal.note(CLOSE_FD)
        journal.strike(second)
    async with journals.open(100) as journal:
        assert await journal.note(THAW) > second > first


async def test_journal_without_open_entries_is_forgotten(
    journals: FileJournals, directory: Path
) -> None:
    async with journals.open(100) as journal:
        journal.strike(await journal.note(THAW))
    assert list(directory.iterdir()) == []


async def test_empty_journal_of_a_failed_run_is_forgotten(
    journals: FileJournals, directory: Path
) -> None:
    with pytest.raises(BackupError, match="job failed"):
        async with journals.open(100) as journal:
            journal.strike(await journal.note(THAW))
            raise BackupError("job failed")
    assert list(directory.iterdir()) == []


async def test_open_entries_of_a_failed_run_are_kept(
    journals: FileJournals, directory: Path
) -> None:
    with pytest.raises(BackupError):
        async with journals.open(100) as journal:
            await journal.note(THAW)
            raise BackupError("job failed")
    assert path_of(directory).exists()


async def test_journal_that_an_operator_removed_is_no_error_at_the_end(
    journals: FileJournals, directory: Path
) -> None:
    async with journals.open(100):
        path_of(directory).unlink()


@pytest.mark.parametrize("cut_bytes", [1, 2, 10, 40])
async def test_line_cut_by_a_death_is_dropped(
    journals: FileJournals, directory: Path, cut_bytes: int
) -> None:
    path = leave(directory, (note_line(1, THAW) + note_line(2, CLOSE_FD))[:-cut_bytes])
    async with journals.open(100) as journal:
        assert journal.open_entries == ((1, THAW),)
        # The next line begins a line of its own.
        await journal.note(CLOSE_FD)
    assert path.read_text() == note_line(1, THAW) + note_line(2, CLOSE_FD)


async def test_file_with_nothing_but_a_cut_line_is_an_empty_journal(
    journals: FileJournals, directory: Path
) -> None:
    leave(directory, '{"no')
    async with journals.open(100) as journal:
        assert journal.open_entries == ()


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\n",
        b"\0\0\0\0\n",
        b"\xff\xfe\n",
        b"5\n",
        b'"note"\n',
        b"[]\n",
        b'{"kind": "thaw", "names": []}\n',
        b'{"note": "x", "kind": "thaw", "names": []}\n',
        b'{"note": 1, "kind": "explode", "names": []}\n',
        b'{"note": 1, "kind": "thaw"}\n',
        b'{"note": 1, "kind": "thaw", "names": 3}\n',
        b'{"strike": null}\n',
    ],
)
async def test_unreadable_journal_is_one_line_that_names_the_file(
    journals: FileJournals, directory: Path, line: bytes
) -> None:
    path = leave(directory, line + note_line(7, THAW).encode())
    with pytest.raises(ConfigError) as caught:
        async with journals.open(100):
            pass
    assert str(caught.value) == f"the journal '{path}' of a killed run cannot be read"
    assert caught.value.hint == "look at it and remove it"
    assert path.read_bytes().startswith(line)
    with owned(path):  # nobody holds its lock any more
        pass


async def test_directory_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="unable to keep a journal in"):
        async with FileJournals(str(tmp_path / "file" / "below")).open(100):
            pass


async def test_directory_is_for_its_owner_alone(journals: FileJournals, directory: Path) -> None:
    async with journals.open(100):
        assert directory.stat().st_mode & 0o777 == 0o700
        assert path_of(directory).stat().st_mode & 0o777 == 0o600


async def test_living_owner_is_waited_for_and_then_told(
    journals: FileJournals, directory: Path
) -> None:
    with owned(path_of(directory)), pytest.raises(VmLocked) as caught:
        async with journals.open(100):
            pass
    assert str(caught.value) == "another backup of VM 100 is running"
    assert str(path_of(directory)) in caught.value.hint


async def note_once_owned(journals: FileJournals) -> list[Reversal]:
    """Own the journal, note one more entry; what was open before."""
    async with journals.open(100) as journal:
        found = [reversal for _, reversal in journal.open_entries]
        await journal.note(CLOSE_FD)
        return found


async def test_owner_that_ends_in_time_is_followed(directory: Path) -> None:
    journals = FileJournals(str(directory), owner_timeout_s=20.0)
    async with journals.open(100) as journal:
        await journal.note(THAW)
        following = asyncio.ensure_future(note_once_owned(journals))
        await asyncio.sleep(0)
        assert not following.done()
    assert await following == [THAW]


async def test_follower_of_a_forgotten_journal_owns_the_new_file(directory: Path) -> None:
    journals = FileJournals(str(directory), owner_timeout_s=20.0)
    path = leave(directory, "")
    with owned(path):
        following = asyncio.ensure_future(note_once_owned(journals))
        await asyncio.sleep(0)  # it has opened the old file and found it locked
        path.unlink()
    assert await following == []
    assert path.read_text() == note_line(1, CLOSE_FD)


async def test_of_two_openers_one_owns_at_a_time(directory: Path) -> None:
    journals = FileJournals(str(directory), owner_timeout_s=20.0)
    inside = most = 0

    async def use() -> None:
        nonlocal inside, most
        async with journals.open(100) as journal:
            inside += 1
            most = max(most, inside)
            journal.strike(await journal.note(THAW))
            inside -= 1

    await asyncio.gather(*(use() for _ in range(4)))
    assert most == 1
    assert list(directory.iterdir()) == []


async def test_cancelled_opener_leaves_no_descriptor(directory: Path) -> None:
    journals = FileJournals(str(directory))
    with owned(path_of(directory)):
        before = len(os.listdir("/proc/self/fd"))
        opening = asyncio.ensure_future(note_once_owned(journals))
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert len(os.listdir("/proc/self/fd")) == before


async def test_listing_names_vms_with_a_journal_ascending(
    journals: FileJournals, directory: Path
) -> None:
    assert await journals.list_vmids() == ()
    for vmid in (200, 100, 1000):
        leave(directory, "", vmid)
    for name in ("x.journal", "100.journal.tmp", "lock"):
        (directory / name).write_text("")
    assert await journals.list_vmids() == [100, 200, 1000]


async def test_directory_that_cannot_be_listed_is_told_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"unable to look for journals in .* - Not a directory"):
        await FileJournals(str(tmp_path / "file")).list_vmids()


async def test_watch_begins_after_owning_and_ends_after_forgetting(directory: Path) -> None:
    seen: list[tuple[str, bool]] = []

    @contextmanager
    def watch(vmid: int) -> Iterator[Callable[[], None]]:
        seen.append((f"begin {vmid}", path_of(directory).exists()))
        yield lambda: seen.append(("home", path_of(directory).exists()))
        seen.append((f"end {vmid}", path_of(directory).exists()))

    async with FileJournals(str(directory), watch).open(100):
        pass
    assert seen == [("begin 100", True), ("home", True), ("end 100", False)]


async def test_watch_over_a_journal_with_something_left_is_not_ended(directory: Path) -> None:
    sent_home: list[bool] = []

    @contextmanager
    def watch(vmid: int) -> Iterator[Callable[[], None]]:
        yield lambda: sent_home.append(True)

    async with FileJournals(str(directory), watch).open(100) as journal:
        await journal.note(CLOSE_FD)
    assert sent_home == []


async def test_reboot_ends_what_was_processes_and_keeps_the_rest(directory: Path) -> None:
    async with FileJournals(str(directory), boot_id="one").open(100) as journal:
        for kind in ReversalKind:
            await journal.note(Reversal(kind=kind, names=("x",)))
    async with FileJournals(str(directory), boot_id="one").open(100) as journal:
        assert len(journal.open_entries) == len(ReversalKind)
    async with FileJournals(str(directory), boot_id="two").open(100) as journal:
        kinds = {reversal.kind.value for _, reversal in journal.open_entries}
    assert kinds == {"free-fleecing", "remove-file", "remove-tree", "unlock"}


async def test_half_written_line_of_a_full_disk_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "100.journal"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    journal = FileJournal(fd, str(path))
    await journal.note(THAW)
    size_bytes = path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # The kernel writes what fits, as on a disk that fills up within one write.
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes + 5, limits[1]))
        with pytest.raises(ConfigError, match="unable to write the run's journal - No space"):
            await journal.note(CLOSE_FD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    await journal.note(CLOSE_FD)
    os.close(fd)
    assert path.read_text() == note_line(1, THAW) + note_line(3, CLOSE_FD)
