"""A VM that is off, or that never runs, backed up to a server from its images."""

from __future__ import annotations

import pytest

from integration.backup_server.conftest import KEY, PbsLab, fill


@pytest.mark.parametrize("is_encrypted", [False, True])
async def test_vm_that_is_off_is_read_whole_and_sent_once(
    pbs_lab: PbsLab, is_encrypted: bool
) -> None:
    disks = ("--disk", "scsi0=24M,format=qcow2", "--disk", "scsi1=5243392", "--disk", "ide2=512")
    pbs_lab.lab.create("--no-agent", "--fill", 1, *disks)
    fill(pbs_lab.lab.image(1), 0, 5243392)
    if is_encrypted:
        pbs_lab.write_key()
    pbs_lab.write_storage(**({"encryption-key": "1"} if is_encrypted else {}))
    counters = pbs_lab.served.pbs.counters
    for sent_count in (None, 0, 2):
        if sent_count:
            fill(pbs_lab.lab.image(1), 4 << 20, 512)
            fill(pbs_lab.lab.image(2), 0, 512)
        counters.reset()
        log = await pbs_lab.back_up()
        assert "data path: offline (the VM is off" in log and "starting kvm" not in log
        assert sent_count in (None, counters.received_chunk_count)
        found = await pbs_lab.restored(key=KEY if is_encrypted else None)
        assert found["drive-scsi0"] == pbs_lab.image_bytes(0, "qcow2")
        assert found["drive-scsi1"] == pbs_lab.image_bytes(1)
        assert found["drive-ide2"] == pbs_lab.image_bytes(2)
    assert list(pbs_lab.lab.run_directory.iterdir()) == []


async def test_template_is_read_without_a_qemu(pbs_lab: PbsLab) -> None:
    pbs_lab.lab.create("--no-agent", "--fill", 1, "--disk", "scsi0=8M,format=qcow2")
    config = pbs_lab.lab.config()
    config.write_text(f"{config.read_text()}template: 1\n")
    pbs_lab.write_storage()
    assert "data path: offline" in await pbs_lab.back_up()
    assert (await pbs_lab.restored())["drive-scsi0"] == pbs_lab.image_bytes(0, "qcow2")


async def test_increment_follows_a_backup_of_the_vm_while_it_was_off(pbs_lab: PbsLab) -> None:
    """A backup without a QEMU is a base of other content than the one that bitmaps count from."""
    pbs_lab.lab.create("--no-agent", "--fill", 1, "--disk", "scsi0=8M")
    pbs_lab.write_storage()
    await pbs_lab.back_up()
    await pbs_lab.must("lab", "start", pbs_lab.lab.root, 100)
    assert "reading everything (no bitmap" in await pbs_lab.back_up()
    await pbs_lab.write("scsi0", 0, 512)
    assert "dirty-bitmap status: OK (4.0 MiB of 8.0 MiB dirty)" in await pbs_lab.back_up()
    assert (await pbs_lab.restored())["drive-scsi0"] == pbs_lab.image_bytes()
