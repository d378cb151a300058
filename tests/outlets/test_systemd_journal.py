"""Entries of the journal: one datagram each, or nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sockets import short_place
from vzdump_qemu.outlets.systemd_journal import SystemdJournal


@pytest.fixture
def place() -> Iterator[Path]:
    with short_place() as directory:
        yield directory


def test_entry_is_one_datagram(place: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(place / "socket"))
        SystemdJournal(str(place / "socket")).write({"MESSAGE": "done", "VZDUMP_VMID": "100"})
        assert journal.recv(65536) == b"MESSAGE=done\nVZDUMP_VMID=100\n"


def test_host_without_journal_loses_nothing_but_the_entry(place: Path) -> None:
    SystemdJournal(str(place / "absent")).write({"MESSAGE": "done"})


def test_journal_that_reads_nothing_does_not_block(place: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(place / "socket"))
        client = SystemdJournal(str(place / "socket"))
        for _ in range(2000):
            client.write({"MESSAGE": "x" * 1000})
        assert journal.recv(65536).startswith(b"MESSAGE=xxx")
