"""The guest reboots, or powers itself off, in the middle of its backup."""

from __future__ import annotations

from integration.conftest import MakeGuest
from integration.scenario import SLOW, wait_until

# A kernel that takes its disks down fails writes that still come, with or without a backup.
QUIET = "killall scribe; sleep 0.3"


def test_reboot_meanwhile_changes_nothing_in_the_archive(make_guest: MakeGuest) -> None:
    guest = make_guest()
    guest.start()
    guest.ask("dd if=/dev/urandom of=/data0/noise bs=1M count=16")
    with guest.backing_up(*SLOW) as backup:
        with guest.logged_in() as shell:
            shell.send(f"{QUIET}; reboot -f\n".encode())
            wait_until(lambda: len(guest.verdicts()) == 2, "the guest's second boot")
        backup.wait(0)
    backup.judge(frozen=True)
    guest.wait_writes()
    guest.assert_let_go()
    guest.stop()


def test_power_off_meanwhile_changes_nothing_in_the_archive(make_guest: MakeGuest) -> None:
    guest = make_guest()
    guest.start()
    guest.ask("dd if=/dev/urandom of=/data0/noise bs=1M count=16")
    with guest.backing_up(*SLOW) as backup:
        with guest.logged_in() as shell:
            shell.send(f"{QUIET}; poweroff -f\n".encode())
            wait_until(lambda: guest.run_state() == "shutdown", "the guest's end")
        backup.wait(0)
    backup.judge(frozen=True)
    assert guest.run_state() == "shutdown"
    guest.assert_let_go()
