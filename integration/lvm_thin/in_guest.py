"""What happens inside the guest: a lab on a thin volume, backed up by the tool; told by lines.

Runs as the only program there, as root, with the tool and the standard library alone. Each fact
is a line ``FACT name value``; what is expected of them is said by the test outside.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import traceback
from pathlib import Path

MIB = 1 << 20
POOL_DEVICE = "/dev/vdb"
VOLUME = "vm-100-disk-0"
DEVICE = Path("/dev/vg") / VOLUME
# Extents of thin volumes are larger than VMA's clusters; whole extents stay unmapped.
VOLUME_MIB = 48
LAB = Path("/var/lab")
# Nobody but LVM makes device nodes here.
LVM_CONFIG = (
    "devices { obtain_device_list_from_udev=0 external_device_info_source=none } "
    "activation { udev_sync=0 udev_rules=0 verify_udev_operations=1 monitoring=0 } "
    'global { thin_check_executable="" thin_dump_executable="" use_lvmlockd=0 event_activation=0 }'
)


def main() -> int:
    """Every step in turn; the exit status is that of the last word."""
    Path("/etc/lvm/lvm.conf").write_text(LVM_CONFIG)
    try:
        make_volume()
        make_lab()
        back_up()
        refuse_inactive()
    except Exception:  # the console is all that anybody sees of this program
        traceback.print_exc(file=sys.stdout)
        return 1
    return 0


def tell(name: str, value: object) -> None:
    """One fact for the test outside."""
    print(f"FACT {name} {value}", flush=True)


def run(*words: object, code: int | None = 0) -> str:
    """One program; what it printed."""
    done = subprocess.run(
        [str(word) for word in words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if code is not None and done.returncode != code:
        raise RuntimeError(f"{words} ended with {done.returncode}: {done.stdout}")
    return done.stdout


def tool(*words: object, code: int = 0) -> str:
    """The tool as an operator calls it."""
    return run(sys.executable, "-m", "vzdump_qemu", *words, code=code)


def make_volume() -> None:
    """A thin volume half full of chance, with a hole and a stretch of zeroes that was written."""
    for words in (
        ("pvcreate", POOL_DEVICE),
        ("vgcreate", "vg", POOL_DEVICE),
        ("lvcreate", "--type", "thin-pool", "-L", "160M", "-Zn", "-n", "data", "vg"),
        ("lvcreate", "-V", f"{VOLUME_MIB}M", "-T", "vg/data", "-n", VOLUME),
    ):
        run("lvm", *words)
    chance = random.Random(1)
    with open(DEVICE, "r+b", buffering=0) as device:
        for at_mib in range(0, VOLUME_MIB, 8):
            device.seek(at_mib * MIB)
            device.write(chance.randbytes(3 * MIB))
            device.write(bytes(MIB))
        os.fsync(device.fileno())
    tell("size", _size())


def make_lab() -> None:
    """A folder node whose VM has its disk on that volume."""
    # No QEMU is here, and none is started.
    tool("lab", "create", LAB, "--vm", 100, "--disk", "scsi0=1M", "--qemu", "/bin/busybox")
    config = LAB / "etc/pve/qemu-server/100.conf"
    lines = [line for line in config.read_text().splitlines() if not line.startswith("scsi0:")]
    config.write_text("\n".join([*lines, f"scsi0: thin:{VOLUME},size={VOLUME_MIB}M", ""]))
    storages = LAB / "etc/pve/storage.cfg"
    text = storages.read_text().rstrip()
    storages.write_text(f"{text}\n\nlvmthin: thin\n\tvgname vg\n\tthinpool data\n")


def back_up() -> None:
    """The archive holds what the volume holds, and the volume was only read."""
    before, mapped, written = _digest(), _mapped(), _written()
    log = tool("--root", LAB, 100, "--data-path", "offline")
    tell("offline", "data path: offline" in log)
    [archive] = (LAB / "var/lib/vz/dump").glob("*.vma")
    tell("whole", ": whole" in tool("verify", archive))
    tool("extract", archive, "/var/out")
    with open("/var/out/disk-drive-scsi0.raw", "rb") as file:
        tell("equal", hashlib.file_digest(file, "sha256").hexdigest() == before)
    tell("volume-equal", _digest() == before)
    tell("mapped-before", mapped)
    tell("mapped-after", _mapped())
    tell("written-during-backup", _written() - written)
    config = Path("/var/out/qemu-server.conf").read_text()
    tell("map-line", "#qmdump#map:scsi0:drive-scsi0:thin:raw:" in config)
    archive.unlink()


def refuse_inactive() -> None:
    """A volume that is not active is named, and stays as it is."""
    run("lvm", "lvchange", "-an", f"vg/{VOLUME}")
    tell("gone", not DEVICE.exists())
    log = tool("--root", LAB, 100, "--data-path", "offline", code=255)
    tell("refused", f"volume 'thin:{VOLUME}' is not active" in log)
    tell("still-inactive", not DEVICE.exists())
    run("lvm", "lvremove", "-f", f"vg/{VOLUME}")
    log = tool("--root", LAB, 100, "--data-path", "offline", code=255)
    tell("unknown", f"no such logical volume vg/{VOLUME}" in log)


def _size() -> int:
    with open(DEVICE, "rb") as device:
        return device.seek(0, os.SEEK_END)


def _digest() -> str:
    with open(DEVICE, "rb") as device:
        return hashlib.file_digest(device, "sha256").hexdigest()


def _mapped() -> str:
    """Sectors of the pool that belong to the volume."""
    return run("dmsetup", "status", f"vg-{VOLUME.replace('-', '--')}").split()[3]


def _written() -> int:
    """Sectors that were ever written through the volume's device."""
    number = os.stat(DEVICE).st_rdev
    name = f"{os.major(number)}:{os.minor(number)}"
    return int(Path(f"/sys/dev/block/{name}/stat").read_text().split()[6])


if __name__ == "__main__":
    sys.exit(main())
