"""The table of command limits."""

from __future__ import annotations

import pytest

from vzdump_qemu.qemu.timeouts import command_timeout_s


@pytest.mark.parametrize(
    ("command", "timeout_s"),
    [
        ("query-status", 5.0),
        ("query-migrate", 3600.0),
        ("eject", 60.0),
        ("change-vnc-password", 60.0),
        ("guest-fsfreeze-freeze", 3600.0),
        ("guest-fsfreeze-thaw", 180.0),
        ("guest-fsfreeze-status", 5.0),
        ("blockdev-add", 60.0),
        ("quit", 60.0),
        ("query-backup", 600.0),
        ("backup-cancel", 600.0),
        ("guest-shutdown", 600.0),
        ("blockdev-del", 600.0),
        ("blockdev-snapshot-delete-internal-sync", 3600.0),
        ("nbd-server-stop", 25.0),
    ],
)
def test_command_timeout_follows_the_table(command, timeout_s):
    assert command_timeout_s(command) == timeout_s
