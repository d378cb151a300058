"""A Proxmox Backup Server of the operator's own, named by the environment.

`PBS_REPOSITORY`, `PBS_PASSWORD` and `PBS_FINGERPRINT` as the platform's client takes them, with
`VZDUMP_QEMU_REAL_PBS=1` to say that backups of a VM 100 may be made there. Everything goes through
the command line: what the server itself checks is then checked by it.
"""

from __future__ import annotations

import os

import pytest

from integration.conftest import REAL_PBS_MISSING
from integration.real_lab import RealLab
from integration.stock_qemu.monitor import Monitor
from vzdump_qemu.formats.pbs import Repository
from vzdump_qemu.units import MIB

NAME = "pbs1:backup/vm/100/latest"

pytestmark = pytest.mark.skipif(bool(REAL_PBS_MISSING), reason=REAL_PBS_MISSING)


def _write_storage(lab: RealLab) -> None:
    place = Repository.parse(os.environ["PBS_REPOSITORY"])
    lines = {
        "server": place.host,
        "port": str(place.port),
        "datastore": place.datastore,
        "username": str(place.auth_id),
        "fingerprint": os.environ["PBS_FINGERPRINT"],
        "content": "backup",
    }
    path = lab.root / "etc/pve/storage.cfg"
    section = "".join(f"\t{name} {value}\n" for name, value in lines.items())
    path.write_text(f"{path.read_text()}\npbs: pbs1\n{section}")
    secrets = lab.root / "etc/pve/priv/storage"
    secrets.mkdir(parents=True)
    (secrets / "pbs1.pw").write_text(os.environ["PBS_PASSWORD"] + "\n")


def _images(lab: RealLab, vmid: int) -> set[bytes]:
    directory = lab.root / f"var/lib/vz/images/{vmid}"
    return {path.read_bytes() for path in directory.glob("*.raw")}


@pytest.mark.parametrize("is_encrypted", [False, True])
def test_increments_are_whole_at_a_server_that_is_not_ours(
    real_lab: RealLab, is_encrypted: bool
) -> None:
    real_lab.create("--no-agent", "--fill", 1, "--disk", "scsi0=25166336", "--disk", "virtio1=4M")
    _write_storage(real_lab)
    if is_encrypted:
        key_path = real_lab.root / "etc/pve/priv/storage/pbs1.enc"
        real_lab.must("key", "create", key_path, "--kdf", "none")
    real_lab.must("lab", "start", real_lab.root, 100)
    for turn in range(3):
        log = real_lab.must("--root", real_lab.root, 100, "--storage", "pbs1").err
        real_lab.must("verify", NAME, "--root", real_lab.root)
        real_lab.must("restore", NAME, 200, "--root", real_lab.root, "--force")
        assert _images(real_lab, 200) == _images(real_lab, 100)
        with Monitor(real_lab.run_directory / "100.qmp") as monitor:
            monitor.write_as_guest("/machine/peripheral/scsi0", turn * 5 * MIB, MIB)
    assert "dirty-bitmap status: OK" in log
