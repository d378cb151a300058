"""QEMU's own job to a backup server, by every account, into every namespace, of odd disks."""

from __future__ import annotations

import pytest

from integration.backup_server.conftest import KEY, PbsLab
from vzdump_qemu.formats.pbs import Namespace

# The simulator's stand-in carries the command out; Debian's QEMU does not know it.
DISKS = {"scsi0": 9437696, "virtio1": 1049088, "sata2": 4194304}


@pytest.mark.parametrize("is_encrypted", [False, True])
@pytest.mark.parametrize("is_user", [False, True])
@pytest.mark.parametrize("namespace", ["", "site/nightly"])
async def test_backups_of_odd_disks_are_whole_and_the_second_is_incremental(
    pbs_lab: PbsLab, namespace: str, is_user: bool, is_encrypted: bool
) -> None:
    root = pbs_lab.lab.root
    disks = [word for key, size in DISKS.items() for word in ("--disk", f"{key}={size}")]
    pbs_lab.lab.must(
        "lab", "create", root, "--vm", 100, "--qemu", "vzsim-qemu", *disks, "--fill", 3
    )
    pbs_lab.namespace, pbs_lab.is_user = namespace, is_user
    pbs_lab.write_storage()
    if is_encrypted:
        pbs_lab.write_key()
    if namespace:
        for name in ("site", namespace):
            pbs_lab.served.pbs.datastores["tank"].make_namespace(Namespace.parse(name))
    await pbs_lab.must("lab", "start", root, 100)
    images = sorted(path.read_bytes() for path in root.glob("var/lib/vz/images/100/*.raw"))
    for _ in range(2):
        log = await pbs_lab.back_up()
        found = await pbs_lab.restored(key=KEY if is_encrypted else None)
        stored = [found[name] for name in found if name.startswith("drive-")]
        assert sorted(stored) == images and len(images) == len(DISKS)
    assert log.count("dirty-bitmap status: OK (drive clean)") == len(DISKS)
