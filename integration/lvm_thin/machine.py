"""A guest with LVM and Python, in which the tool itself is run.

Owns its two parts: an initramfs with the kernel's device mapper, and a disk with this interpreter,
the tool with what it needs, and LVM's programs, all copied from this machine. What is done inside
is `in_guest`'s.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path

from integration.conftest import Surroundings
from integration.guest import (
    BUSYBOX,
    NoGuest,
    copy_libraries,
    copy_modules,
    pack_initramfs,
    package_root,
)
from integration.probes import LVM_PROGRAMS, SYSTEM_PATH, why_no_lvm
from integration.real_lab import QEMU

# On a busy machine without KVM; alone it takes a minute.
RUN_LIMIT_S = 900.0
_MODULES = ("virtio_pci", "virtio_blk", "dm_thin_pool")
_UNUSED = shutil.ignore_patterns(
    "test", "tests", "idlelib", "ensurepip", "lib2to3", "tkinter", "turtledemo", "site-packages",
    "config-*", "pydoc_data", "*.opt-1.pyc", "*.opt-2.pyc",
)  # fmt: skip
_TOOL_DIRECTORY = "opt/tool"
_ROOT_MIB = 900
_POOL_MIB = 256
_REPOSITORY = Path(__file__).resolve().parents[2]
_INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
for module in {modules}; do modprobe $module || echo NO MODULE $module; done
mount -t ext4 /dev/vda /root
for name in proc sys dev; do mount --bind /$name /root/$name; done
mount -t tmpfs run /root/run
chroot /root {python} -m integration.lvm_thin.in_guest
echo ENDED $?
poweroff -f
"""


@dataclass(frozen=True)
class LvmGuest:
    """What boots it."""

    kernel: Path
    initramfs: Path
    root_image: Path
    accelerator: str

    def run(self, directory: Path) -> str:
        """Boot it and wait for its end; what stood on its console."""
        console, pool = directory / "console", directory / "pool.raw"
        with open(pool, "wb") as file:
            file.truncate(_POOL_MIB << 20)
        words = [QEMU, "-nodefaults", "-display", "none", "-no-reboot", "-m", "1024"]
        words += ["-machine", f"q35,accel={self.accelerator}", "-cpu", "max"]
        words += ["-kernel", str(self.kernel), "-initrd", str(self.initramfs)]
        words += ["-append", "console=ttyS0 panic=-1 quiet", "-serial", f"file:{console}"]
        for image in (self.root_image, pool):
            words += ["-drive", f"file={image},format=raw,if=virtio,cache=unsafe"]
        process = subprocess.Popen(words)
        try:
            process.wait(RUN_LIMIT_S)
        except subprocess.TimeoutExpired:
            told = console.read_text(errors="replace")
            raise AssertionError(f"the guest did not end in {RUN_LIMIT_S:.0f} s:\n{told}") from None
        finally:
            process.kill()
            process.wait()
        return console.read_text(errors="replace")


def build_lvm_guest(machine: Surroundings, directory: Path) -> LvmGuest:
    """Build it. Raises NoGuest, with the reason."""
    missing = why_no_lvm(machine.guest_missing)
    if machine.guest is None or missing:
        raise NoGuest(missing)
    packages = package_root(machine.guest.kernel.parent)
    initramfs = directory / "initramfs.gz"
    _build_initramfs(packages, directory / "boot", initramfs)
    root = directory / "root"
    _fill_root(root)
    image = directory / "root.ext4"
    with open(image, "wb") as file:
        file.truncate(_ROOT_MIB << 20)
    _host("mkfs.ext4", "-q", "-d", root, image)
    return LvmGuest(
        kernel=machine.guest.kernel,
        initramfs=initramfs,
        root_image=image,
        accelerator=machine.accelerator,
    )


def _build_initramfs(packages: Path, tree: Path, path: Path) -> None:
    (tree / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, tree / "bin/busybox")
    [modules] = sorted((packages / "lib/modules").glob("*-cloud-amd64"))[-1:]
    copy_modules(modules, tree / "lib/modules" / modules.name, _MODULES)
    init = tree / "init"
    command = f"/bin/env PYTHONPATH=/{_TOOL_DIRECTORY} PATH=/bin:/sbin {_interpreter()}"
    init.write_text(_INIT.format(modules=" ".join(_MODULES), python=command))
    init.chmod(0o755)
    pack_initramfs(tree, path)


def _interpreter() -> Path:
    return Path(os.path.realpath(sys.executable))


def _fill_root(root: Path) -> None:
    for name in ("bin", "sbin", "proc", "sys", "dev", "run", "tmp", "etc", "var/lib", "etc/lvm"):
        (root / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for name in ("sh", "env", "cmp", "cat"):
        (root / "bin" / name).symlink_to("busybox")
    programs = [
        _interpreter(),
        *(Path(shutil.which(name, path=SYSTEM_PATH) or "") for name in LVM_PROGRAMS),
    ]
    for program in programs:
        target = root / (
            "sbin" if program.name in LVM_PROGRAMS else str(program.parent).lstrip("/")
        )
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(os.path.realpath(program), target / program.name)
        copy_libraries(program, root)
    for name in ("lvs", "lvchange"):
        (root / "sbin" / name).symlink_to("lvm")
    library = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(library, root / str(library).lstrip("/"), ignore=_UNUSED, symlinks=True)
    tool = root / _TOOL_DIRECTORY
    for found in _needed(distribution("vzdump-qemu"), set()):
        _copy_distribution(found, tool)
    for name in ("vzdump_qemu", "integration/lvm_thin"):
        shutil.copytree(_REPOSITORY / name, tool / name)
    (tool / "integration/__init__.py").touch()
    for path in [*root.rglob("*.so"), *root.rglob("*.so.*")]:
        if not path.is_symlink():
            _copy_linked(path, root)


def _needed(found: Distribution, seen: set[str]) -> Iterator[Distribution]:
    """What the tool needs, and what that needs in turn; extras are none of it."""
    for line in found.requires or ():
        name = re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]
        if "extra ==" in line or name in seen:
            continue
        seen.add(name)
        try:
            needed = distribution(name)
        except ModuleNotFoundError:
            continue  # of another platform or version
        yield needed
        yield from _needed(needed, seen)


def _copy_distribution(found: Distribution, target: Path) -> None:
    for file in found.files or ():
        source = Path(str(file.locate()))
        if ".." in file.parts or "tests" in file.parts or not source.is_file():
            continue
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target / file)


def _copy_linked(library: Path, root: Path) -> None:
    """What a module of this root is linked with outside of it."""
    listed = subprocess.run(["ldd", library], capture_output=True, text=True, check=False).stdout
    for path in re.findall(r"=> (/\S+) \(0x", listed):
        target = root / path.lstrip("/")
        if not path.startswith(str(root)) and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def _host(*words: object) -> None:
    subprocess.run(
        [str(word) for word in words],
        env={**os.environ, "PATH": SYSTEM_PATH},
        check=True,
        capture_output=True,
    )
