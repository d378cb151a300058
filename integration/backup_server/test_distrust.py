"""What is not built upon: each ends in a full read that says why, and is the disk's content.

Failure modes 75 and 77 to 82, on a real QEMU and a server that checks every digest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from integration.backup_server.conftest import GROUP, KEY, PbsLab
from integration.stock_qemu.monitor import Monitor
from vzdump_qemu.formats.pbs import (
    BlobEncoder,
    EncryptionKey,
    FixedIndex,
    Namespace,
    encode_manifest,
)
from vzdump_qemu.units import MIB
from vzsim.fakepbs import Datastore, Fault, FaultKind, Place
from vzsim.fakepbs.verification import verify_locked

DEVICE = "drive-scsi0"
PLACE = Place(namespace=Namespace(), group=GROUP)
Spoil = Callable[[PbsLab], Awaitable[str]]


@pytest.fixture
async def chain(pbs_lab: PbsLab) -> PbsLab:
    """A running VM with two backups at the server; increments work."""
    pbs_lab.lab.create("--no-agent", "--fill", 1, "--disk", "scsi0=24M")
    pbs_lab.write_storage()
    await pbs_lab.must("lab", "start", pbs_lab.lab.root, 100)
    for turn in range(2):
        log = await pbs_lab.back_up()
        await pbs_lab.write("scsi0", turn * 8 * MIB, 4096)
    assert f"{DEVICE}: dirty-bitmap status: OK (4.0 MiB of 24.0 MiB dirty)" in log
    return pbs_lab


def _tank(pbs_lab: PbsLab) -> Datastore:
    return pbs_lab.served.pbs.datastores["tank"]


def _bitmaps(monitor: Monitor) -> list[tuple[str, str]]:
    return [
        (str(node["node-name"]), str(bitmap["name"]))
        for node in monitor.execute("query-named-block-nodes", flat=True)
        for bitmap in node.get("dirty-bitmaps", ())
    ]


# -- what the server holds -------------------------------------------------------------------


async def _prune_previous(pbs_lab: PbsLab) -> str:
    [*_, last] = await pbs_lab.backups()
    await pbs_lab.calls.forget(last.backup)
    return "the bitmap does not belong to the backup at the target"


async def _prune_all(pbs_lab: PbsLab) -> str:
    for one in await pbs_lab.backups():
        await pbs_lab.calls.forget(one.backup)
    return "there is no valid previous backup"


async def _fail_verification(pbs_lab: PbsLab) -> str:
    """The chunk that the last backup alone has is lost, which a verification finds out."""
    [*_, last] = await pbs_lab.backups()
    tank = _tank(pbs_lab)
    index = FixedIndex.decode(tank.read_file(PLACE, last.backup, f"{DEVICE}.img.fidx"))
    tank.chunks.remove(bytes(index.digests[:32]))
    assert verify_locked(tank, PLACE, last.backup)
    return "there is no valid previous backup"


async def _switch_encryption_on(pbs_lab: PbsLab) -> str:
    pbs_lab.write_key()
    pbs_lab.write_storage(**{"encryption-key": "1"})
    return "the previous backup cannot be used: it is not signed, and a key is given now"


async def _exchange_index(pbs_lab: PbsLab) -> str:
    """The index is not the one that the manifest speaks of."""
    [first, last] = await pbs_lab.backups()
    older, newer = (PLACE.backup_path(one.backup) for one in (first, last))
    files, name = _tank(pbs_lab).files, f"{DEVICE}.img.fidx"
    files.write(f"{newer}/{name}", files.read(f"{older}/{name}"))
    return "the previous backup cannot be used: "


async def _set_server_back(pbs_lab: PbsLab) -> str:
    """As if the server had been put back, and somebody else had made a backup in that second."""
    [first, last] = await pbs_lab.backups()
    await _exchange_index(pbs_lab)
    manifest = replace(_tank(pbs_lab).manifest(PLACE, first.backup), backup=last.backup)
    encoded = BlobEncoder().encode(encode_manifest(manifest)).to_bytes()
    path = f"{PLACE.backup_path(last.backup)}/index.json.blob"
    _tank(pbs_lab).files.write(path, encoded)
    return "the bitmap does not belong to the backup at the target"


@pytest.mark.parametrize(
    "spoil",
    [
        _prune_previous,
        _prune_all,
        _fail_verification,
        _switch_encryption_on,
        _exchange_index,
        _set_server_back,
    ],
)
async def test_previous_backup_that_cannot_be_built_upon_ends_in_a_full_read(
    chain: PbsLab, spoil: Spoil
) -> None:
    reason = await spoil(chain)
    log = await chain.back_up()
    assert f"{DEVICE}: reading everything ({reason}" in log
    key = KEY if chain.secret_path("enc").exists() else None
    assert (await chain.restored(key=key))[DEVICE] == chain.image_bytes()
    await chain.write("scsi0", 16 * MIB, 512)
    assert "dirty-bitmap status: OK (4.0 MiB" in await chain.back_up()
    assert (await chain.restored(key=key))[DEVICE] == chain.image_bytes()


async def test_other_key_ends_in_a_full_read(chain: PbsLab) -> None:
    await _switch_encryption_on(chain)
    await chain.back_up()
    other = EncryptionKey(bytes(range(1, 33)))
    chain.write_key(other)
    log = await chain.back_up()
    assert f"{DEVICE}: reading everything (the previous backup cannot be used: wrong key" in log
    assert (await chain.restored(key=other))[DEVICE] == chain.image_bytes()
    chain.secret_path("enc").unlink()
    chain.write_storage()
    log = await chain.back_up()
    assert "reading everything (the previous backup cannot be used: it was made with a key" in log
    assert (await chain.restored())[DEVICE] == chain.image_bytes()


# -- what QEMU holds -------------------------------------------------------------------------


async def test_77_qemu_started_anew_has_no_bitmap(chain: PbsLab) -> None:
    await chain.must("lab", "stop", chain.lab.root, 100)
    await chain.must("lab", "start", chain.lab.root, 100)
    assert f"{DEVICE}: reading everything (no bitmap: QEMU was started" in await chain.back_up()
    assert (await chain.restored())[DEVICE] == chain.image_bytes()


async def test_77_bitmap_that_was_stopped_is_not_believed(chain: PbsLab) -> None:
    with Monitor(chain.lab.run_directory / "100.qmp") as monitor:
        for node, name in _bitmaps(monitor):
            monitor.execute("block-dirty-bitmap-disable", node=node, name=name)
    await chain.write("scsi0", 20 * MIB, 512)
    log = await chain.back_up()
    assert f"{DEVICE}: reading everything (the bitmap was stopped meanwhile)" in log
    assert (await chain.restored())[DEVICE] == chain.image_bytes()


async def test_78_bitmap_under_our_name_of_another_kind_is_not_believed(chain: PbsLab) -> None:
    with Monitor(chain.lab.run_directory / "100.qmp") as monitor:
        for node, name in _bitmaps(monitor):
            monitor.execute("block-dirty-bitmap-remove", node=node, name=name)
            monitor.execute("block-dirty-bitmap-add", node=node, name=name, granularity=65536)
    log = await chain.back_up()
    assert f"{DEVICE}: reading everything (the bitmap has a granularity of 65536 bytes)" in log
    assert (await chain.restored())[DEVICE] == chain.image_bytes()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind=FaultKind.REPLY, endpoint="POST /fixed_chunk", text="disk is full"),
        Fault(kind=FaultKind.REPLY, endpoint="POST /fixed_close", text="got unexpected checksum"),
        Fault(kind=FaultKind.REPLY, endpoint="POST /finish", text="unable to update manifest"),
    ],
    ids=["chunk", "close", "finish"],
)
async def test_79_80_failed_run_loses_no_change(chain: PbsLab, fault: Fault) -> None:
    for turn in range(2):
        chain.served.pbs.faults.add(fault)
        log = await chain.back_up(code=255)
        assert fault.text in log and "reading everything" not in log
        chain.served.pbs.faults.heal()
        await chain.write("scsi0", (16 + 4 * turn) * MIB, 4096)
        assert len(await chain.backups()) == 2
    log = await chain.back_up()
    assert f"{DEVICE}: dirty-bitmap status: OK (12.0 MiB of 24.0 MiB dirty)" in log
    assert (await chain.restored())[DEVICE] == chain.image_bytes()
    chain.assert_let_go()


async def test_81_disk_written_while_the_vm_was_off_is_read_whole(chain: PbsLab) -> None:
    await chain.must("lab", "stop", chain.lab.root, 100)
    content = b"restored from elsewhere" * 100
    chain.lab.image().write_bytes(content + chain.image_bytes()[len(content) :])
    await chain.must("lab", "start", chain.lab.root, 100)
    assert f"{DEVICE}: reading everything (no bitmap" in await chain.back_up()
    assert (await chain.restored())[DEVICE].startswith(b"restored from elsewhere")


async def test_81_disk_of_another_size_is_read_whole(chain: PbsLab) -> None:
    def grow() -> None:
        with Monitor(chain.lab.run_directory / "100.qmp") as monitor:
            monitor.execute("block_resize", device=DEVICE, size=28 * MIB)

    await asyncio.to_thread(grow)
    log = await chain.back_up()
    assert f"{DEVICE}: reading everything (the disk has another size than in" in log
    assert (await chain.restored())[DEVICE] == chain.image_bytes()
    assert "dirty-bitmap status: OK (0 B of 28.0 MiB dirty)" in await chain.back_up()


async def test_82_server_with_an_older_state_ends_in_a_full_read(chain: PbsLab) -> None:
    """As `_prune_previous`, but what is older is a whole backup that the bitmap was once cut at."""
    await _prune_previous(chain)
    log = await chain.back_up()
    assert f"{DEVICE}: reading everything (the bitmap does not belong to the backup at" in log
    assert (await chain.restored())[DEVICE] == chain.image_bytes()
