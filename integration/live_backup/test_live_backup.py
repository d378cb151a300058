"""A guest that writes all the time is backed up, restored and booted again."""

from __future__ import annotations

import pytest

from integration.conftest import MakeGuest
from integration.scenario import SLOW, Backup, GuestDisk, WritingGuest, run, wait_until

THREE_DISKS = (
    GuestDisk("scsi0"),
    GuestDisk("scsi1", format="qcow2"),
    GuestDisk("virtio2"),
)


@pytest.fixture(scope="module")
def guest(make_guest: MakeGuest) -> WritingGuest:
    """One guest with an agent for all of these tests."""
    guest = make_guest(THREE_DISKS)
    guest.start()
    return guest


def _boots_and_verifies(guest: WritingGuest, backup: Backup) -> None:
    restored = guest.restored(backup.archive())
    restored.start()
    [verdict] = restored.verdicts()
    words = verdict.split()
    assert words[:2] == ["VERIFY", "OK"]
    numbers = [int(word) for word in words[2:]]
    assert len(numbers) == len(guest.disks)
    assert backup.first_round <= numbers[0] <= backup.last_round
    restored.wait_writes()
    restored.destroy()


def test_frozen_backup_is_clean_in_step_and_boots(guest: WritingGuest) -> None:
    backup = guest.backup("--compress", "zstd")
    assert "issuing guest-agent 'fs-freeze' command" in backup.log
    assert "data path: pull" in backup.log
    backup.judge(frozen=True)
    guest.wait_writes()
    guest.assert_let_go()
    _boots_and_verifies(guest, backup)


def test_independent_reader_of_the_point_in_time_sees_the_same_bytes(guest: WritingGuest) -> None:
    copies = [guest.lab.root / f"independent-{disk.key}.raw" for disk in guest.disks]
    with guest.backing_up(*SLOW) as backup:
        socket = guest.lab.run_directory / f"{guest.vmid}.nbd/s"
        for index, copy in enumerate(copies):
            wait_until(socket.exists, "the NBD socket")
            address = f"nbd+unix:///vzdump-{index}?socket={socket}"
            run("qemu-img", "convert", "-f", "raw", "-O", "raw", address, copy)
        guest.wait_writes(20)
        backup.wait(0)
    for copy, image in zip(copies, backup.judge(frozen=True), strict=True):
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", "-s", copy, image)
    guest.assert_let_go()


def test_backup_without_an_agent_is_what_a_power_cut_leaves(make_guest: MakeGuest) -> None:
    guest = make_guest(THREE_DISKS, has_agent=False)
    guest.start()
    backup = guest.backup()
    assert "fs-freeze" not in backup.log
    backup.judge(frozen=False)
    guest.wait_writes()
    guest.assert_let_go()
    guest.stop()
    _boots_and_verifies(guest, backup)


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_one_disk_of_either_format_is_clean(make_guest: MakeGuest, image_format: str) -> None:
    guest = make_guest([GuestDisk("virtio0", format=image_format)])
    guest.start()
    backup = guest.backup()
    backup.judge(frozen=True)
    guest.wait_writes()
    guest.assert_let_go()
    guest.stop()
