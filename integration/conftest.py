"""What these tests need of the machine, said at the top of every run.

Owns what is probed, and the guests and labs that are handed to the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.guest import GuestFiles, NoGuest, build_guest
from integration.probes import (
    DockerFacts,
    find_docker,
    why_no_iscsi,
    why_no_kvm,
    why_no_loop,
    why_no_lvm,
)
from integration.real_lab import QEMU, RealLab
from integration.scenario import DISKS, GuestDisk, WritingGuest
from tests.contract.selection import BEHAVIOUR_MODULES

pytest.register_assert_rewrite(*BEHAVIOUR_MODULES)

_REAL_PBS_VARIABLES = ("VZDUMP_QEMU_REAL_PBS", "PBS_REPOSITORY", "PBS_PASSWORD", "PBS_FINGERPRINT")
REAL_PBS_MISSING = (
    ""
    if all(name in os.environ for name in _REAL_PBS_VARIABLES)
    else f"NOT covered: {', '.join(_REAL_PBS_VARIABLES)} name none; the simulated one is there"
)


@dataclass(frozen=True)
class Surroundings:
    """What is here; empty texts mean that nothing is missing."""

    qemu_version: str
    qemu_missing: str
    guest: GuestFiles | None
    guest_missing: str
    kvm_missing: str
    docker: DockerFacts

    @property
    def accelerator(self) -> str:
        return "tcg" if self.kvm_missing else "kvm"


_READERS = ("zsh", "fish", "mandoc", "groff", "man")


def needs_program(name: str) -> pytest.MarkDecorator:
    """Leave a test out where a program is missing; the header of the run says so."""
    return pytest.mark.skipif(
        shutil.which(name) is None, reason=f"NOT covered: {name} is not installed"
    )


_MACHINE = pytest.StashKey[Surroundings]()
_DIRECTORY = pytest.StashKey["tempfile.TemporaryDirectory[str]"]()


def pytest_configure(config: pytest.Config) -> None:
    # What is covered and what is not must be seen, however quiet the run was asked to be.
    config.option.verbose = max(config.option.verbose, 0)
    if "s" not in config.option.reportchars:
        config.option.reportchars += "s"
    directory = tempfile.TemporaryDirectory(prefix="vzg-", dir="/tmp")
    config.stash[_DIRECTORY] = directory
    config.stash[_MACHINE] = _look_around(Path(directory.name))


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_DIRECTORY].cleanup()


def _look_around(directory: Path) -> Surroundings:
    if shutil.which(QEMU) is None:
        text = f"{QEMU} is not installed (apt install qemu-system-x86 qemu-utils)"
        return Surroundings(
            qemu_version="",
            qemu_missing=text,
            guest=None,
            guest_missing=text,
            kvm_missing=text,
            docker=find_docker(),
        )
    told = subprocess.run([QEMU, "--version"], check=True, capture_output=True, text=True).stdout
    version = told.splitlines()[0].removeprefix("QEMU emulator version ")
    guest, missing = None, ""
    if shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/sbin:/usr/sbin") is None:
        missing = "mkfs.ext4 is not installed (apt install e2fsprogs)"
    else:
        try:
            guest = build_guest(directory)
        except NoGuest as error:
            missing = str(error)
    return Surroundings(
        qemu_version=version,
        qemu_missing="",
        guest=guest,
        guest_missing=missing,
        kvm_missing=why_no_kvm(QEMU, guest),
        docker=find_docker(),
    )


def pytest_report_header(config: pytest.Config) -> list[str]:
    from integration.contract.real_agent import REAL_AGENTS
    from integration.contract.reals import REALS
    from tests.contract.selection import header_lines

    machine = config.stash[_MACHINE]
    unread = [name for name in _READERS if shutil.which(name) is None]
    images = "covered" if shutil.which("qemu-img") else "NOT covered: qemu-img is not installed"
    return [
        "stock QEMU: "
        + (f"NOT covered: {machine.qemu_missing}" if machine.qemu_missing else "covered, ")
        + machine.qemu_version,
        f"qcow2 disks: {images}",
        "completion and manual page: "
        + (f"NOT covered: {', '.join(unread)} not installed" if unread else "covered"),
        "real guest and agent: "
        + (f"NOT covered: {machine.guest_missing}" if machine.guest_missing else "covered"),
        "accelerator: "
        + (
            f"TCG; KVM NOT covered: {machine.kvm_missing}"
            if machine.kvm_missing
            else "KVM, it has booted the guest"
        ),
        "containers: "
        + (
            f"NOT covered: {machine.docker.missing}; all scenarios run on the host"
            if machine.docker.missing
            else f"covered, {machine.docker.engine}"
        ),
        f"loop devices as disks: {_covered(why_no_loop())}",
        f"iSCSI: {_covered(why_no_iscsi())}",
        f"thin volumes of LVM, in a guest: {_covered(why_no_lvm(machine.guest_missing))}",
        "patched QEMU with its 'backup' command: NOT covered: Debian has none",
        f"real Proxmox Backup Server: {REAL_PBS_MISSING or 'covered'}",
        *header_lines(REALS),
        *header_lines(REAL_AGENTS),
    ]


def _covered(missing: str) -> str:
    return f"NOT covered: {missing}" if missing else "covered"


@pytest.fixture(scope="session")
def machine(request: pytest.FixtureRequest) -> Surroundings:
    return request.config.stash[_MACHINE]


@contextmanager
def _open_lab(machine: Surroundings) -> Iterator[RealLab]:
    with tempfile.TemporaryDirectory(prefix="vzr-", dir="/tmp") as directory:
        lab = RealLab(Path(directory) / "lab", accelerator=machine.accelerator)
        try:
            yield lab
        finally:
            if lab.root.exists():
                lab.must("lab", "destroy", lab.root)
        assert lab.processes() == []


@pytest.fixture
def real_lab(machine: Surroundings) -> Iterator[RealLab]:
    """An empty place for a lab; what a test left there is destroyed."""
    if machine.qemu_missing:
        pytest.skip(machine.qemu_missing)
    with _open_lab(machine) as lab:
        yield lab


MakeGuest = Callable[..., WritingGuest]


@pytest.fixture(scope="module")
def make_guest(machine: Surroundings) -> Iterator[MakeGuest]:
    """Makes VMs 100 with guests that write in step, each in its own lab; see `scenario`."""
    if machine.guest is None:
        pytest.skip(machine.guest_missing)
    files = machine.guest
    with ExitStack() as labs:

        def make(disks: Sequence[GuestDisk] = DISKS, **more: object) -> WritingGuest:
            lab = labs.enter_context(_open_lab(machine))
            guest = WritingGuest(lab, files, disks=disks, **more)  # type: ignore[arg-type]
            guest.create()
            return guest

        yield make


BootGuest = Callable[[], Path]


@pytest.fixture
def boot_guest(machine: Surroundings, real_lab: RealLab) -> BootGuest:
    """Starts VM 100 with the real guest on an ext4 disk; returns the file of its console."""
    if machine.guest is None:
        pytest.skip(machine.guest_missing)
    guest = machine.guest

    def boot() -> Path:
        console = real_lab.root / "console"
        real_lab.create("--disk", "virtio0=16M")
        programs = f"{os.environ['PATH']}:/sbin:/usr/sbin"
        subprocess.run(
            ["mkfs.ext4", "-q", real_lab.image()], check=True, env=os.environ | {"PATH": programs}
        )
        config = real_lab.config()
        text = config.read_text().replace("memory: 64", "memory: 256")
        config.write_text(f"{text}args: {guest.arguments(console)}\n")
        real_lab.must("lab", "start", real_lab.root, 100)
        return console

    return boot
