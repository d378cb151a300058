"""A running VM of Debian's QEMU, backed up to a server: whole first, then what changed."""

from __future__ import annotations

import asyncio

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from integration.backup_server.conftest import KEY, PbsLab, fill
from vzdump_qemu.formats.pbs import BlobDecoder, Namespace, decode_key_file, unlock_key_file
from vzdump_qemu.formats.pbs.names import RSA_KEY_NAME
from vzdump_qemu.stores.pbs import ReaderSession
from vzdump_qemu.units import GIB, MIB

CHUNK_BYTES = 4 * MIB
WHOLE = "reading everything (there is no valid previous backup)"


async def _create(pbs_lab: PbsLab, *disks: str, **options: str) -> None:
    words = [word for disk in disks for word in ("--disk", disk)]
    pbs_lab.lab.create("--no-agent", "--fill", 1, *words)
    pbs_lab.write_storage(**options)
    await pbs_lab.must("lab", "start", pbs_lab.lab.root, 100)


async def test_second_backup_of_a_large_disk_reads_and_sends_what_changed(pbs_lab: PbsLab) -> None:
    pbs_lab.lab.create("--no-agent", "--disk", "scsi0=4G", "--disk", "scsi1=8M")
    fill(pbs_lab.lab.image(), 0, 48 * MIB)
    pbs_lab.write_storage()
    await pbs_lab.must("lab", "start", pbs_lab.lab.root, 100)
    assert await pbs_lab.back_up() != ""
    for index in range(10):
        await pbs_lab.write("scsi0", index * 400 * MIB + 12345 * 512, 10 * MIB)
    counters = pbs_lab.served.pbs.counters
    counters.reset()
    before = pbs_lab.qemu_read_bytes()
    log = await pbs_lab.back_up()
    read_bytes = pbs_lab.qemu_read_bytes() - before
    assert "drive-scsi0: dirty-bitmap status: OK (1" in log
    assert "drive-scsi1: dirty-bitmap status: OK (0 B of 8.0 MiB dirty)" in log
    assert "backup was done incrementally, reused 3." in log
    assert 100 * MIB <= read_bytes <= 0.05 * 4 * GIB
    # Ten places of 10 MiB lie in at most four chunks each.
    assert 0 < counters.appended_chunk_count <= 40
    assert counters.received_chunk_count <= counters.appended_chunk_count
    assert counters.received_content_bytes <= 40 * CHUNK_BYTES
    assert (await pbs_lab.restored())["drive-scsi0"] == pbs_lab.image_bytes()
    pbs_lab.assert_let_go()


async def test_increments_in_a_row_are_the_disks(pbs_lab: PbsLab) -> None:
    await _create(pbs_lab, "scsi0=24M", "virtio1=9437696,format=qcow2", "sata2=1M")
    assert (await pbs_lab.back_up()).count(WHOLE) == 3
    counters = pbs_lab.served.pbs.counters
    for turn in range(3):
        await pbs_lab.write("scsi0", turn * 8 * MIB, 4096)
        await pbs_lab.write("virtio1", 9437184, 512)
        counters.reset()
        log = await pbs_lab.back_up()
        assert log.count("dirty-bitmap status: OK") == 3 and "reading everything" not in log
        assert counters.appended_chunk_count == 2
        found = await pbs_lab.restored()
        assert found["drive-scsi0"] == pbs_lab.image_bytes()
        assert found["drive-virtio1"] == pbs_lab.image_bytes(1, "qcow2")
        assert found["drive-sata2"] == pbs_lab.image_bytes(2)
        assert b"scsi0:" in found["qemu-server.conf"]
    assert len(await pbs_lab.backups()) == 4
    assert (await pbs_lab.restored(number=0))["drive-scsi0"] != pbs_lab.image_bytes()
    pbs_lab.assert_let_go()


async def test_backup_is_the_point_in_time_while_the_guest_writes(pbs_lab: PbsLab) -> None:
    await _create(pbs_lab, "scsi0=24M")
    before = pbs_lab.image_bytes()
    backup = asyncio.ensure_future(pbs_lab.back_up("--bwlimit", 8192))
    while not pbs_lab.served.pbs.counters.received_chunk_count:
        await asyncio.sleep(0.05)
    for offset_bytes in range(0, 24 * MIB, 4 * MIB):
        await pbs_lab.write("scsi0", offset_bytes, MIB)
    assert not backup.done()
    await backup
    assert (await pbs_lab.restored())["drive-scsi0"] == before
    assert pbs_lab.image_bytes() != before
    await pbs_lab.back_up()
    assert (await pbs_lab.restored())["drive-scsi0"] == pbs_lab.image_bytes()


async def test_efi_disk_and_tpm_state_are_read_too(pbs_lab: PbsLab) -> None:
    pbs_lab.lab.create("--no-agent", "--disk", "scsi0=8M", "--fill", 1)
    folder = pbs_lab.lab.image().parent
    sizes = {"efidisk0": 540672, "tpmstate0": 4 * MIB}
    config = "bios: ovmf\n"
    for key, size_bytes in sizes.items():
        (folder / f"vm-100-{key}.raw").write_bytes(bytes(size_bytes))
        fill(folder / f"vm-100-{key}.raw", 0, 4096)
        config += f"{key}: local:100/vm-100-{key}.raw,size={size_bytes}\n"
    path = pbs_lab.lab.config()
    path.write_text(path.read_text() + config)
    pbs_lab.write_storage()
    await pbs_lab.must("lab", "start", pbs_lab.lab.root, 100)
    for _ in range(2):
        log = await pbs_lab.back_up()
        found = await pbs_lab.restored()
        names = found.keys() - {"drive-scsi0", "qemu-server.conf"}
        assert {name.split("-")[1] for name in names} == set(sizes)
        for name in names:
            key = name.split("-")[1]
            assert found[name] == (folder / f"vm-100-{key}.raw").read_bytes()
    assert "drive-tpmstate0-backup: reading everything (its volume is read directly)" in log


@pytest.mark.parametrize("is_user", [False, True])
@pytest.mark.parametrize("namespace", ["", "site/nightly"])
async def test_account_and_namespace_are_those_of_the_storage(
    pbs_lab: PbsLab, namespace: str, is_user: bool
) -> None:
    pbs_lab.namespace, pbs_lab.is_user = namespace, is_user
    await _create(pbs_lab, "scsi0=8M")
    if namespace:
        refused = await pbs_lab.back_up(code=255)
        assert "namespace not found" in refused
        for name in ("site", namespace):
            pbs_lab.served.pbs.datastores["tank"].make_namespace(Namespace.parse(name))
    for _ in range(2):
        log = await pbs_lab.back_up()
        assert (await pbs_lab.restored())["drive-scsi0"] == pbs_lab.image_bytes()
    assert "dirty-bitmap status: OK" in log


async def test_encrypted_backup_is_read_with_the_key_alone(pbs_lab: PbsLab) -> None:
    pbs_lab.lab.create("--no-agent", "--fill", 1, "--disk", "scsi0=12M")
    pbs_lab.write_storage(**{"encryption-key": "1"})
    assert "no encryption key file found" in await pbs_lab.back_up(code=255)
    master = rsa.generate_private_key(public_exponent=65537, key_size=4096)
    pbs_lab.write_key()
    pbs_lab.secret_path("master.pem").write_bytes(
        master.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    pbs_lab.write_storage(**{"encryption-key": "1", "master-pubkey": "1"})
    await pbs_lab.must("lab", "start", pbs_lab.lab.root, 100)
    for turn in range(2):
        await pbs_lab.write("scsi0", turn * 4 * MIB, 512)
        log = await pbs_lab.back_up()
        assert (await pbs_lab.restored(key=KEY))["drive-scsi0"] == pbs_lab.image_bytes()
    assert "dirty-bitmap status: OK (4.0 MiB of 12.0 MiB dirty)" in log
    [*_, last] = await pbs_lab.backups()
    session = await ReaderSession.open(pbs_lab.endpoint, Namespace(), last.backup)
    try:
        wrapped = await session.download(RSA_KEY_NAME, bytes_max=MIB)
    finally:
        await session.close()
    text = master.decrypt(bytes(BlobDecoder().decode(wrapped)), padding.PKCS1v15())
    assert unlock_key_file(decode_key_file(text)) == KEY
