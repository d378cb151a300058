"""The systemd journal, by its native socket.

Owns the one datagram per entry; what entries say is `plan.journal_entries`'s.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress

from vzdump_qemu.formats.journal_entry import SOCKET_PATH, encode_journal_entry


class SystemdJournal:
    """`JournalOutlet` on a socket of the journal; a host without one loses nothing but this.

    Args:
        path: of the socket.
    """

    def __init__(self, path: str = SOCKET_PATH) -> None:
        self._path = path

    def write(self, fields: Mapping[str, str]) -> None:
        """As the port says."""
        datagram = encode_journal_entry(fields)
        # A journal that is absent, full or slow must not delay a backup.
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender,
        ):
            sender.sendto(datagram, self._path)
