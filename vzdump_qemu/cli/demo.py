"""The main job on one's own machine: lab, backup under guest writes, proof, restore, comparison.

Owns the order of the steps, the choice of the QEMU and the comparison; every step is the command
that an operator would type, run as a process of its own. Behind ``make demo``.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click

from vzdump_qemu.errors import BackupError
from vzdump_qemu.node.layout import NodeLayout
from vzdump_qemu.node.qemu_probe import has_backup_command
from vzdump_qemu.qemu.request_ids import RequestIds
from vzdump_qemu.qemu.unix_socket import SOCKET_PATH_BYTES_MAX
from vzdump_qemu.stores.commands import SystemCommandRunner
from vzdump_qemu.units import MIB

REAL_QEMU = "qemu-system-x86_64"
SIMULATED_QEMU = "vzsim-qemu"
_VMID = 100
_RESTORED_VMID = 101
VMID_MAX = 999_999_999
# One even disk, and one whose last cluster is cut short within a file system block.
_DISKS = {"scsi0": 48 * MIB, "scsi1": 20 * MIB + 512}
# Slow enough that many guest writes fall into the backup.
_GUEST_SCRIPT = """\
[backup]
bytes_per_s = 41943040

[guest]
writes_per_s = 60.0
write_bytes = 65536
seed = 7
keep_point_in_time = {directory}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuChoice:
    """Which QEMU plays, and why."""

    binary: str
    simulated: bool
    reason: str


def choose_qemu() -> QemuChoice:
    """A real QEMU where one is installed that can back up by itself, else the simulated one."""
    path = shutil.which(REAL_QEMU)
    if path is None:
        reason = f"no {REAL_QEMU} is installed"
    elif not asyncio.run(_has_backup_command(path)):
        reason = f"{path} has no 'backup' command, which only Proxmox's build of QEMU has"
    else:
        return QemuChoice(binary=path, simulated=False, reason="it has the 'backup' command")
    return QemuChoice(binary=SIMULATED_QEMU, simulated=True, reason=reason)


async def _has_backup_command(path: str) -> bool:
    return bool(
        await has_backup_command(
            path, commands=SystemCommandRunner(), request_ids=RequestIds(os.getpid())
        )
    )


def run_demo(lab: Path) -> str:
    """Run all steps in a new folder, which is removed at the end; return the closing line.

    Raises: BackupError, one line naming the step.
    """
    qemu = choose_qemu()
    click.echo(f"QEMU of this demo: {qemu.binary}, because {qemu.reason}")
    try:
        return _run_steps(lab, qemu)
    finally:
        if lab.exists():
            _run("lab", "destroy", str(lab))


def _run_steps(lab: Path, qemu: QemuChoice) -> str:
    disks = [word for key, size in _DISKS.items() for word in ("--disk", f"{key}={size}")]
    kept = lab / "at-the-freeze"
    _run(
        *("lab", "create", str(lab), "--vm", str(_VMID), "--qemu", qemu.binary, *disks),
        *("--agent", "--fill", "1"),
    )
    if qemu.simulated:
        _let_guest_write(lab, kept)
    else:
        _keep_disks(lab, kept)
    _run("lab", "start", str(lab), str(_VMID))
    _run("--root", str(lab), str(_VMID), "--compress", "zstd", "--output", "log")
    _run("lab", "stop", str(lab), str(_VMID))
    [archive_path] = (lab / "var/lib/vz/dump").glob(f"vzdump-qemu-{_VMID}-*.vma.zst")
    _run("verify", str(archive_path))
    _run("restore", str(archive_path), str(_RESTORED_VMID), "--root", str(lab))
    compared_bytes = changed_bytes = 0
    for key in _DISKS:
        at_freeze = kept / f"drive-{key}.raw"
        restored = _disk_path(lab, _RESTORED_VMID, key)
        if count_differing_bytes(at_freeze, restored):
            raise BackupError(f"{restored} differs from {at_freeze}")
        compared_bytes += restored.stat().st_size
        changed_bytes += count_differing_bytes(at_freeze, _disk_path(lab, _VMID, key))
    meanwhile = f"; the guest has changed {changed_bytes} of them since" if changed_bytes else ""
    kind = "simulated" if qemu.simulated else "real"
    return (
        f"demo: OK - VM {_RESTORED_VMID}'s disks equal VM {_VMID}'s at the freeze in all "
        f"{compared_bytes} bytes{meanwhile} ({kind} QEMU: {qemu.binary})"
    )


def _run(*words: str) -> None:
    click.echo(f"\n$ vzdump-qemu {shlex.join(words)}")
    sys.stdout.flush()
    argv = [sys.executable, "-m", "vzdump_qemu", *words]
    status = subprocess.run(argv, check=False, stderr=subprocess.STDOUT).returncode
    if status:
        raise BackupError(f"'vzdump-qemu {shlex.join(words)}' ended with {status}")


def _let_guest_write(lab: Path, kept: Path) -> None:
    """Have the simulated guest write all the time, and its disks copied at the freeze."""
    script = lab / "guest.toml"
    script.write_text(_GUEST_SCRIPT.format(directory=json.dumps(str(kept.resolve()))))
    with open(_config_path(lab, _VMID), "a", encoding="utf-8") as config:
        config.write(f"args: -vzsim script={shlex.quote(str(script.resolve()))}\n")


def _keep_disks(lab: Path, kept: Path) -> None:
    """Without an operating system inside nobody writes: the disks are as they will be."""
    kept.mkdir()
    for key in _DISKS:
        shutil.copyfile(_disk_path(lab, _VMID, key), kept / f"drive-{key}.raw")


def _config_path(lab: Path, vmid: int) -> Path:
    [path] = lab.glob(f"etc/pve/nodes/*/qemu-server/{vmid}.conf")
    return path


def _disk_path(lab: Path, vmid: int, key: str) -> Path:
    for line in _config_path(lab, vmid).read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}: local:"):
            return lab / "var/lib/vz/images" / line.split(":")[2].split(",")[0]
    raise BackupError(f"VM {vmid} has no disk '{key}'")


def count_differing_bytes(one: Path, other: Path) -> int:
    """How many bytes differ; a difference in length counts byte by byte."""
    import numpy

    count = abs(one.stat().st_size - other.stat().st_size)
    with open(one, "rb") as one_file, open(other, "rb") as other_file:
        while (data := one_file.read(MIB)) and (other_data := other_file.read(MIB)):
            length = min(len(data), len(other_data))
            left = numpy.frombuffer(data, dtype=numpy.uint8, count=length)
            right = numpy.frombuffer(other_data, dtype=numpy.uint8, count=length)
            count += int(numpy.count_nonzero(left != right))
    return count


def fits_sockets(lab: Path) -> bool:
    """Whether the sockets of a lab there have paths that the kernel takes."""
    layout = NodeLayout(root=str(lab.absolute()), node_name="lab")
    # Labs are refused by their longest possible name, so that any VMID can be added later.
    return len(os.fsencode(layout.serial_socket(VMID_MAX))) <= SOCKET_PATH_BYTES_MAX


@click.command("demo")
@click.option("--lab", default="demo-lab", show_default=True, help="folder to work in.")
def demo_command(lab: str) -> None:
    """Back up, verify, restore and compare in a lab of its own."""
    place = Path(lab)
    # Also where the lab would not be made there: the name was meant for a new folder.
    if place.exists():
        raise BackupError(f"'{lab}' exists", hint=f"vzdump-qemu lab destroy {shlex.quote(lab)}")
    if fits_sockets(place):
        click.echo(f"\n{run_demo(place)}")
        return
    with tempfile.TemporaryDirectory(prefix="vzq-") as directory:
        click.echo(f"'{place.absolute()}' is too long for sockets: the lab is in {directory}")
        click.echo(f"\n{run_demo(Path(directory) / 'lab')}")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    from vzdump_qemu.cli.main import run

    sys.exit(run(["demo", *sys.argv[1:]]))
