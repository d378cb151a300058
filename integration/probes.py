"""What of KVM, Docker and block devices works here, found out by using it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from integration.guest import GuestFiles

KVM = Path("/dev/kvm")
_KVM_BOOT_LIMIT_S = 8.0
SYSTEM_PATH = f"{os.environ['PATH']}:/sbin:/usr/sbin"
LVM_PROGRAMS = ("lvm", "dmsetup")


@dataclass(frozen=True)
class DockerFacts:
    """A Docker engine, or why there is none."""

    engine: str
    missing: str


def find_docker() -> DockerFacts:
    """Ask the engine who it is."""
    if os.environ.get("VZDUMP_QEMU_IN_CONTAINER"):
        return DockerFacts(engine="", missing="this is a container itself")
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=5)
        try:
            version = str(client.version()["Version"])
        finally:
            client.close()
    except DockerException:
        return DockerFacts(engine="", missing="no Docker engine answers")
    return DockerFacts(engine=f"Docker {version}", missing="")


def why_no_kvm(qemu: str, guest: GuestFiles | None) -> str:
    """Boot the guest with KVM; empty if it came up, else why it is not used."""
    if guest is None:
        return "there is no guest to try it with"
    if not os.access(KVM, os.R_OK | os.W_OK):
        return f"{KVM} is not there, or not ours"
    with tempfile.TemporaryDirectory(prefix="vzk-", dir="/tmp") as name:
        console = Path(name) / "console"
        words = [qemu, "-nodefaults", "-display", "none", "-machine", "q35,accel=kvm", "-m", "256"]
        words += ["-kernel", str(guest.kernel), "-initrd", str(guest.initramfs), "-no-reboot"]
        words += ["-append", "console=ttyS0 panic=-1 quiet", "-serial", f"file:{console}"]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline_s = time.monotonic() + _KVM_BOOT_LIMIT_S
        try:
            while time.monotonic() < deadline_s:
                if console.exists() and "AGENT" in console.read_text(errors="replace"):
                    return ""
                if process.poll() is not None:
                    return f"{KVM} is there, but QEMU ended with {process.returncode}"
                time.sleep(0.05)
            return f"{KVM} is there, but the guest did not come up in {_KVM_BOOT_LIMIT_S:.0f} s"
        finally:
            process.kill()
            process.wait()


def why_no_loop() -> str:
    """Attach a loop device; empty if that works, else why it does not."""
    if os.geteuid() != 0:
        return "only root can attach loop devices"
    losetup = shutil.which("losetup", path=SYSTEM_PATH)
    if losetup is None:
        return "losetup is not installed"
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(1 << 20)
        words = [losetup, "-f", "--show", file.name]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"no loop device could be attached: {done.stderr.strip()}"
        subprocess.run([losetup, "-d", done.stdout.strip()], check=True)
    return ""


def why_no_iscsi() -> str:
    """Empty if there are a target and QEMU's driver for it."""
    if shutil.which("tgtd", path=SYSTEM_PATH) is None:
        return "there is no iSCSI target (apt install tgt)"
    img = shutil.which("qemu-img")
    if img is None:
        return "qemu-img is not installed"
    told = subprocess.run([img, "--help"], capture_output=True, text=True, check=True).stdout
    if " iscsi " not in told.rpartition("Supported formats:")[2]:
        return "QEMU has no iSCSI driver (apt install qemu-block-extra)"
    return ""


def why_no_lvm(guest_missing: str) -> str:
    """Empty if a guest with LVM can be made of what is here."""
    for program in (*LVM_PROGRAMS, "mkfs.ext4"):
        if shutil.which(program, path=SYSTEM_PATH) is None:
            return f"'{program}' is not installed (apt install lvm2 e2fsprogs)"
    return guest_missing
