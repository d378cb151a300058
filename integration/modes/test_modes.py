"""The modes of a backup and the states in which a VM can be found, with a real guest."""

from __future__ import annotations

import pytest

from integration.conftest import MakeGuest
from integration.scenario import SLOW, WritingGuest, assert_same, wait_until


@pytest.fixture(scope="module")
def guest(make_guest: MakeGuest) -> WritingGuest:
    """One guest for all of these tests; each leaves it running."""
    guest = make_guest()
    guest.start()
    return guest


def _assert_equal_to_images(guest: WritingGuest, restored: list[object]) -> None:
    for index, (disk, path) in enumerate(zip(guest.disks, restored, strict=True)):
        assert_same(guest.image(index), disk.format, path)  # type: ignore[arg-type]


def test_suspended_guest_runs_on_before_the_backup_is_done(guest: WritingGuest) -> None:
    with guest.backing_up("--mode", "suspend", *SLOW) as backup:
        guest.wait_writes()
        assert guest.run_state() == "running"
        backup.wait(0)
    backup.judge(frozen=False)
    guest.wait_writes()
    guest.assert_let_go()


def test_paused_guest_is_backed_up_and_stays_paused(guest: WritingGuest) -> None:
    with guest.monitor() as monitor:
        monitor.execute("stop")
    backup = guest.backup()
    assert guest.run_state() == "paused"
    _assert_equal_to_images(guest, [*backup.judge(frozen=False)])
    guest.assert_let_go()
    with guest.monitor() as monitor:
        monitor.execute("cont")
    guest.wait_writes()


def test_stopped_guest_boots_again_before_the_backup_is_done(guest: WritingGuest) -> None:
    boots = len(guest.verdicts())
    pid = guest.qemu_pid()
    with guest.backing_up("--mode", "stop", *SLOW) as backup:
        assert guest.qemu_pid() != pid
        wait_until(lambda: len(guest.verdicts()) > boots, "the guest's next boot")
        backup.wait(0)
    backup.judge(frozen=False)
    guest.wait_writes()
    guest.assert_let_go()


def test_vm_that_is_off_and_template_equal_their_images(guest: WritingGuest) -> None:
    guest.stop()
    for is_template in (False, True):
        if is_template:
            with open(guest.lab.config(), "a", encoding="utf-8") as config:
                config.write("template: 1\n")
        backup = guest.backup()
        assert "data path: offline" in backup.log
        _assert_equal_to_images(guest, [*backup.judge(frozen=False)])
        guest.assert_nothing_left()
        assert guest.lab.processes() == []
