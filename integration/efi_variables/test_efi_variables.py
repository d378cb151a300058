"""Variables of the EFI firmware go with the VM into its archive and out of it."""

from __future__ import annotations

import pytest

from integration.conftest import MakeGuest
from integration.scenario import EFI_CODE, GuestDisk, assert_same

VARIABLE = "/sys/firmware/efi/efivars/VzdumpTest-4f2c1a5e-7f0b-4c7e-9a35-2d6f0b1c8e11"
# Non-volatile, for boot and run time.
ATTRIBUTES = r"\007\000\000\000"


def test_variable_written_by_the_guest_is_there_after_a_restore(make_guest: MakeGuest) -> None:
    if not EFI_CODE.exists():
        pytest.skip("NOT covered: ovmf is not installed")
    guest = make_guest([GuestDisk("scsi0")], is_efi=True)
    guest.start()
    guest.ask(f"printf '{ATTRIBUTES}kept' > {VARIABLE}")
    assert "kept" in guest.ask(f"cat {VARIABLE}")
    backup = guest.backup()
    [image] = backup.judge(frozen=True)
    assert_same(guest.efi_image, "raw", image.parent / "disk-drive-efidisk0.raw")
    guest.wait_writes()
    guest.assert_let_go()
    guest.ask(f"chattr -i {VARIABLE}; printf '{ATTRIBUTES}lost' > {VARIABLE}")
    restored = guest.restored(backup.archive())
    restored.start()
    assert "kept" in restored.ask(f"cat {VARIABLE}")
    restored.destroy()
