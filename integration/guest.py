"""A tiny real guest: Debian's cloud kernel, busybox and the real guest agent in one initramfs.

Owns finding or fetching the parts and packing them. The guest mounts the VM's first disk (ext4)
at ``/data``, runs the agent in the foreground and keeps writing to ``/data/ticks``.
"""

from __future__ import annotations

import gzip
import re
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("linux-image-cloud-amd64", "busybox-static", "qemu-guest-agent")
BUSYBOX = Path("/bin/busybox")
_AGENT = "usr/sbin/qemu-ga"
# In the order they are inserted.
_MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
)
# What the agent runs to power the guest off.
_SHUTDOWN = """#!/bin/busybox sh
/bin/busybox sync
/bin/busybox poweroff -f
"""
_INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /data /run /var/run /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
for module in {modules}; do /bin/busybox insmod /modules/$module.ko; done
/bin/busybox mdev -s
/bin/busybox mount -t ext4 /dev/vda /data && echo MOUNTED
port=
for name in /sys/class/virtio-ports/*/name; do
    if [ "$(/bin/busybox cat $name)" = org.qemu.guest_agent.0 ]; then
        port=/dev/$(/bin/busybox basename $(/bin/busybox dirname $name))
    fi
done
(while :; do echo tick >> /data/ticks; /bin/busybox sync; /bin/busybox usleep 50000; done) &
echo AGENT $port
/usr/sbin/qemu-ga -m virtio-serial -p $port -t /run
/bin/busybox poweroff -f
"""


@dataclass(frozen=True)
class GuestFiles:
    """What a VM's ``args:`` line names to boot the guest."""

    kernel: Path
    initramfs: Path

    def arguments(self, console: Path) -> str:
        """The ``args:`` of the configuration; the guest's console goes to a file."""
        return (
            f"-kernel {self.kernel} -initrd {self.initramfs} "
            f"-append 'console=ttyS0 panic=-1 quiet' -serial file:{console}"
        )


class NoGuest(Exception):
    """The guest cannot be built here; the text says why."""


def build_guest(directory: Path) -> GuestFiles:
    """Build the guest below `directory` from what is installed, else from fetched packages.

    Raises: NoGuest.
    """
    if not BUSYBOX.exists():
        raise NoGuest("busybox-static is not installed")
    root = _installed_root() or _fetch_root(directory)
    [kernel] = sorted((root / "boot").glob("vmlinuz-*-cloud-amd64"))[-1:]
    tree = directory / "initramfs"
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("bin", "modules", "sbin", "usr/sbin"):
        (tree / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, tree / "bin/busybox")
    shutil.copy(root / _AGENT, tree / _AGENT)
    _copy_libraries(root / _AGENT, tree)
    version = kernel.name.removeprefix("vmlinuz-")
    _copy_modules(root / "lib/modules" / version, tree / "modules")
    _write_program(tree / "init", _INIT.format(modules=" ".join(_MODULES)))
    _write_program(tree / "sbin/shutdown", _SHUTDOWN)
    return GuestFiles(kernel=kernel, initramfs=_pack(tree, directory / "initramfs.gz"))


def _write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def _installed_root() -> Path | None:
    root = Path("/")
    kernels = list((root / "boot").glob("vmlinuz-*-cloud-amd64"))
    return root if kernels and (root / _AGENT).exists() else None


def _fetch_root(directory: Path) -> Path:
    """Unpack the packages without installing them."""
    root = directory / "packages"
    if root.exists():
        return root
    names = [_run("apt-cache", "depends", PACKAGES[0]), PACKAGES[2]]
    match = re.search(r"Depends: (linux-image-\S+-cloud-amd64)", names[0])
    if match is None:
        raise NoGuest(f"apt knows no package '{PACKAGES[0]}'")
    fetched = directory / "fetched"
    fetched.mkdir(exist_ok=True)
    _run("apt-get", "download", match[1], PACKAGES[2], cwd=fetched)
    unpacking = directory / "unpacking"
    for package in fetched.glob("*.deb"):
        _run("dpkg-deb", "-x", str(package), str(unpacking))
    return unpacking.rename(root)


def _copy_libraries(program: Path, tree: Path) -> None:
    listed = _run("ldd", str(program))
    if "not found" in listed:
        raise NoGuest("libraries of qemu-guest-agent are missing: install that package")
    for path in re.findall(r"(/\S+) \(0x", listed):
        target = tree / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def _copy_modules(source: Path, target: Path) -> None:
    for name in _MODULES:
        found = list(source.rglob(f"{name}.ko*"))
        if not found:
            raise NoGuest(f"the kernel has no module '{name}'")
        if found[0].suffix == ".xz":
            data = subprocess.run(["xz", "-dc", found[0]], check=True, capture_output=True).stdout
            (target / f"{name}.ko").write_bytes(data)
        else:
            shutil.copy(found[0], target / f"{name}.ko")


def _pack(tree: Path, path: Path) -> Path:
    names = sorted(str(entry.relative_to(tree)) for entry in tree.rglob("*"))
    packed = subprocess.run(
        [BUSYBOX, "cpio", "-o", "-H", "newc"],
        input="\n".join(names).encode(),
        cwd=tree,
        check=True,
        capture_output=True,
    ).stdout
    path.write_bytes(gzip.compress(packed, compresslevel=1))
    return path


def _run(*argv: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(argv, cwd=cwd, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoGuest(f"{argv[0]} failed: {error}") from error
    return done.stdout
