"""An operator logs in on the serial console, of a VM and of what was restored from it."""

from __future__ import annotations

import socket

import pexpect.socket_pexpect

from integration.conftest import MakeGuest
from integration.scenario import LIMIT_S

RECORD_BYTES = 4096


def test_restored_vm_lets_its_operator_in_and_has_the_records(make_guest: MakeGuest) -> None:
    guest = make_guest()
    guest.start()
    assert guest.ask("id -un").strip() == "root"
    guest.ask("echo kept > /data0/note; sync")
    backup = guest.backup("--compress", "lzo")
    guest.ask("echo changed > /data0/note; sync")
    restored = guest.restored(backup.archive())
    restored.start()
    _assert_refused(restored.lab.run_directory / "101.serial0")
    assert restored.ask("cat /data0/note").strip() == "kept"
    size_bytes = int(restored.ask("wc -c < /data1/journal"))
    assert size_bytes >= (backup.first_round - 1) * RECORD_BYTES
    restored.destroy()
    guest.wait_writes()


def _assert_refused(path: object) -> None:
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(str(path))
        shell = pexpect.socket_pexpect.SocketSpawn(channel, timeout=LIMIT_S)
        shell.send(b"\n")
        shell.expect("login: ")
        shell.send(b"root\n")
        shell.expect("Password: ")
        shell.send(b"wrong\n")
        shell.expect("Login incorrect")
