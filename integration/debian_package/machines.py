"""Machines with the Debian package installed, as an operator has them.

Owns building the package, the containers of both releases, and one of them with systemd as its
first process. The packages' names and files are `packaging/debian`'s.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from integration.containers.engine import REPOSITORY, DockerContainer, find_base

RELEASES = {"bookworm": "deb12", "trixie": "deb13"}
PACKAGE_DIRECTORY = "/packages"
# The engine of the VMs, what smoke is seen with, and what the package recommends.
_INSTALLED = "man-db procps qemu-system-x86 qemu-utils systemd zstd"
_SYSTEMD = "/lib/systemd/systemd"
_UP_LIMIT_S = 60


@dataclass(frozen=True)
class Machine:
    """A container in which commands are run as root."""

    container: DockerContainer

    def run(self, script: str) -> tuple[int, str]:
        """Run a shell script; exit code and what was printed."""
        code, output = self.container.exec(["bash", "-c", script])
        return code, output.decode(errors="replace")

    def must(self, script: str) -> str:
        """Run a shell script in which no command may fail; what was printed."""
        code, text = self.run(f"set -e -o pipefail\n{script}")
        assert code == 0, text
        return text


def build_package(release: str) -> Path:
    """Build the package of a release; its path."""
    done = subprocess.run(
        [REPOSITORY / "packaging/debian/build", sys.executable, release],
        check=True,
        capture_output=True,
        text=True,
    )
    return Path(done.stdout.strip())


@contextmanager
def installed_machines() -> Iterator[dict[str, Machine]]:
    """A machine of every release with the package installed; by release. Raises NoImage."""
    with ExitStack() as containers, ThreadPoolExecutor(len(RELEASES)) as pool:
        bases = pool.map(find_base, RELEASES)
        packages = dict(zip(RELEASES, pool.map(build_package, RELEASES), strict=True))
        machines = {}
        for release, base in zip(RELEASES, bases, strict=True):
            container = (
                DockerContainer(base)
                .with_command("sleep infinity")
                .with_volume_mapping(str(packages[release].parent), PACKAGE_DIRECTORY, "ro")
                .with_env("DEBIAN_FRONTEND", "noninteractive")
                .with_kwargs(network_mode="host", init=True)
            )
            machines[release] = Machine(containers.enter_context(container))
        list(pool.map(lambda release: _install(machines[release], packages[release]), machines))
        yield machines


def _install(machine: Machine, package: Path) -> None:
    # Base images of a registry leave manual pages out.
    machine.must(
        f"""
        rm -f /etc/dpkg/dpkg.cfg.d/docker
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends {_INSTALLED} \
          {PACKAGE_DIRECTORY}/{package.name}
        """
    )


@contextmanager
def booted_machine(machine: Machine) -> Iterator[Machine | str]:
    """A copy of a machine with systemd as its first process, or why there is none.

    It may mount and has the host's control groups, which systemd cannot do without; it is not
    privileged beyond that.
    """
    image = machine.container.get_wrapped_container().commit("vzdump-qemu/booted", "latest")
    container = (
        DockerContainer(image.id)
        .with_command(_SYSTEMD)
        .with_volume_mapping("/sys/fs/cgroup", "/sys/fs/cgroup", "rw")
        .with_tmpfs_mount("/run")
        .with_tmpfs_mount("/run/lock")
        .with_kwargs(
            network_mode="host",
            cgroupns="host",
            cap_add=["SYS_ADMIN"],
            security_opt=["apparmor=unconfined", "seccomp=unconfined"],
        )
    )
    try:
        with container:
            booted = Machine(container)
            # Degraded is up as well: some unit of the base that a container cannot start.
            code, text = booted.run(
                f"timeout {_UP_LIMIT_S} bash -c "
                '\'until systemctl is-system-running | grep -qE "running|degraded"; '
                "do sleep 0.2; done'"
            )
            yield booted if code == 0 else f"systemd does not come up in a container: {text}"
    finally:
        image.remove(force=True)
