"""The two reference task logs (host behaviour, section 10.3): order and wording of a whole job.

Values differ from run to run; they are replaced by what they are before the logs are compared.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.lab import Ended, Lab
from tests.pbs_server import served_pbs
from vzdump_qemu.node.lab import start_vm, stop_vm

pytestmark = pytest.mark.slow

# The longest first: a part of one may look like another.
VALUES = (
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID"),
    (r"\d{4}_\d\d_\d\d-\d\d_\d\d_\d\d", "NAMED-TIME"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "SERVER-TIME"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME"),
    (r"\(\d\d:\d\d:\d\d\)", "(LENGTH)"),
    (r"INFO: [ \d]{3}% ", "INFO: PERCENT% "),
    (r"\(\d+%\)", "(PERCENT%)"),
    (r"\d+(\.\d+)? ?([KMGT]i?)?B", "SIZE"),
    (r"in ((\d+[hms] ?)+)(?=,)", "in LENGTH"),
    (r"(<?\d+) seconds( \(SIZE/s\))?", "N seconds"),
)
PROGRESS = "INFO: PERCENT% (SIZE of SIZE) in LENGTH, read: SIZE/s, write: SIZE/s"

# As in the specification, but for the names of the lab's storages and folders.
FILE_LOG = """\
INFO: starting new backup job: vzdump 100 --storage local --mode snapshot --compress zstd \
--prune-backups keep-last=2 --notes-template '{{guestname}}'
INFO: Starting Backup of VM 100 (qemu)
INFO: Backup started at TIME
INFO: status = running
INFO: VM Name: web
INFO: include disk 'scsi0' 'local:100/vm-100-disk-0.raw' 4M
INFO: backup mode: snapshot
INFO: ionice priority: 7
INFO: creating vzdump archive 'DUMP/vzdump-qemu-100-NAMED-TIME.vma.zst'
INFO: issuing guest-agent 'fs-freeze' command
INFO: starting backup via QMP command
INFO: issuing guest-agent 'fs-thaw' command
INFO: started backup task 'UUID'
INFO: resuming VM again
INFO: PERCENT% (SIZE of SIZE) in LENGTH, read: SIZE/s, write: SIZE/s
INFO: backup is sparse: SIZE (PERCENT%) total zero data
INFO: transferred SIZE in N seconds
INFO: archive file size: SIZE
INFO: adding notes to backup
INFO: prune older backups with retention: keep-last=2
INFO: removing backup 'local:backup/vzdump-qemu-100-NAMED-TIME.vma.zst'
INFO: pruned 1 backup(s) not covered by keep-retention policy
INFO: Finished Backup of VM 100 (LENGTH)
INFO: Backup finished at TIME
INFO: Backup job finished successfully
TASK OK
"""

SERVER_LOG = """\
INFO: status = running
INFO: backup mode: stop
INFO: ionice priority: 7
INFO: VM Name: db
INFO: include disk 'virtio0' 'local:101/vm-101-disk-0.raw' 8M
INFO: stopping virtual guest
INFO: creating Proxmox Backup Server archive 'vm/101/SERVER-TIME'
INFO: enabling encryption
INFO: starting kvm to execute backup task
INFO: starting backup via QMP command
INFO: started backup task 'UUID'
INFO: resuming VM again after N seconds
INFO: virtio0: dirty-bitmap status: created new
INFO: PERCENT% (SIZE of SIZE) in LENGTH, read: SIZE/s, write: SIZE/s
INFO: backup was done incrementally, reused SIZE (PERCENT%)
INFO: transferred SIZE in N seconds
INFO: Finished Backup of VM 101 (LENGTH)
INFO: Starting Backup of VM 102 (qemu)
INFO: status = stopped
ERROR: Backup of VM 102 failed - VM is locked (snapshot)
INFO: Failed at TIME
INFO: Backup job finished with errors
TASK ERROR: job errors
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Lab]:
    """A lab with the specification's three VMs, two of them running."""
    with tempfile.TemporaryDirectory(prefix="vzr-", dir="/tmp") as directory:
        lab = Lab(Path(directory) / "lab", tmp_path)
        words = ("--fill", 5, "--disk")
        lab.must("lab", "create", lab.root, "--vm", 100, *words, "scsi0=4M")
        lab.must("lab", "create", lab.root, "--vm", 101, *words, "virtio0=8M")
        lab.must("lab", "create", lab.root, "--vm", 102, *words, "scsi0=1M")
        _configure(lab, 100, "name: web")
        _configure(lab, 101, "name: db")
        _configure(lab, 102, "lock: snapshot")
        for vmid in (100, 101):
            asyncio.run(start_vm(str(lab.root), vmid))
        yield lab
        for vmid in (100, 101):
            asyncio.run(stop_vm(str(lab.root), vmid))
        lab.must("lab", "destroy", lab.root)


def _configure(lab: Lab, vmid: int, line: str) -> None:
    """Set one line of a VM's configuration."""
    path = lab.root / f"etc/pve/qemu-server/{vmid}.conf"
    name = line.partition(":")[0]
    kept = [old for old in path.read_text().splitlines() if not old.startswith(f"{name}:")]
    path.write_text("\n".join([*kept, line]) + "\n")


def _without_values(ended: Ended, lab: Lab) -> str:
    lines: list[str] = []
    for line in ended.err.replace(str(lab.dump), "DUMP").splitlines():
        # Sizes of disks are the specification's own.
        if "include disk" not in line:
            for pattern, name in VALUES:
                line = re.sub(pattern, name, line)
        # How often progress is told depends on the machine.
        if line != PROGRESS or lines[-1:] != [PROGRESS]:
            lines.append(line)
    return "".join(f"{line}\n" for line in lines)


def test_row_10_3_snapshot_to_a_file_is_told_as_in_the_reference_log(node: Lab) -> None:
    words = (
        *("--root", node.root, 100, "--storage", "local", "--mode", "snapshot"),
        *("--compress", "zstd", "--prune-backups", "keep-last=2"),
        *("--notes-template", "{{guestname}}"),
    )
    node.must(*words)
    node.must(*words)
    assert _without_values(node.must(*words), node) == FILE_LOG


def test_row_10_3_stop_to_an_encrypted_server_is_told_as_in_the_reference_log(
    node: Lab, tmp_path: Path
) -> None:
    with served_pbs(tmp_path / "server") as server:
        server.add_to(node.root, "pbs1", "encryption-key 1")
        key_path = node.root / "etc/pve/priv/storage/pbs1.enc"
        node.must("key", "create", key_path, "--kdf", "none")
        words = ("--root", node.root, 101, 102, "--storage", "pbs1", "--mode", "stop")
        node.tool(*words)
        # The second finds what the first has sent; another QEMU runs by then.
        ended = node.tool(*words)
    assert ended.code == 255
    # What the specification leaves out of its second example.
    left_out = r"INFO: (starting new backup|Starting Backup of VM 101|Backup \w+ at) .*\n"
    assert re.sub(left_out, "", _without_values(ended, node)) == SERVER_LOG
