"""Images for the scenarios and a container to run them in.

Owns where the base image comes from (a registry if one answers, else ``mmdebstrap``), the build,
and what is mounted: this source tree, the packages of this interpreter and the built guest, all
read-only. A container is not privileged and uses the host's network, so neither bridge nor
packet filter is needed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from integration.guest import BUILT_GUEST_VARIABLE, GuestFiles

# The helper container that removes left-overs needs an image from a registry.
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")

from testcontainers.core.container import DockerContainer

SUITE = "bookworm"
UPSTREAM = "vzdump-qemu/upstream:latest"
IN_CONTAINER_VARIABLE = "VZDUMP_QEMU_IN_CONTAINER"
REPOSITORY = Path(__file__).parents[2]
_IMAGES = Path(__file__).parents[1] / "images"
_PULL_LIMIT_S = 60


class NoImage(Exception):
    """The image cannot be made here; the text says why."""


def build_upstream_image() -> str:
    """Build the image with Debian's QEMU, unless it is there; return its name. Raises NoImage."""
    directory = _IMAGES / "upstream"
    words = ["build", "--network", "host", "--build-arg", f"BASE={find_base(SUITE)}"]
    _docker(*words, "-t", UPSTREAM, str(directory))
    return UPSTREAM


def find_base(suite: str) -> str:
    """The image of a bare Debian, made if need be; return its name. Raises NoImage."""
    own, of_registry = f"vzdump-qemu/base:{suite}", f"debian:{suite}-slim"
    for name in (own, of_registry):
        if _has_image(name):
            return name
    try:
        pulled = subprocess.run(
            ["docker", "pull", "-q", of_registry],
            check=False,
            capture_output=True,
            timeout=_PULL_LIMIT_S,
        )
        if pulled.returncode == 0:
            return of_registry
    except subprocess.TimeoutExpired:
        pass
    _make_base(suite, own)
    return own


def _make_base(suite: str, name: str) -> None:
    """A Debian of the essential packages, from Debian's own archive."""
    if shutil.which("mmdebstrap") is None:
        raise NoImage("no registry answers, and mmdebstrap is not installed")
    with subprocess.Popen(
        ["mmdebstrap", "--variant=minbase", "--quiet", suite, "-"], stdout=subprocess.PIPE
    ) as packing:
        done = subprocess.run(
            ["docker", "import", "-", name],
            stdin=packing.stdout,
            check=False,
            capture_output=True,
        )
    if packing.returncode != 0 or done.returncode != 0:
        raise NoImage(f"mmdebstrap | docker import failed: {done.stderr.decode()}")


def _has_image(name: str) -> bool:
    return (
        subprocess.run(
            ["docker", "image", "inspect", name], check=False, capture_output=True
        ).returncode
        == 0
    )


def _docker(*words: str) -> None:
    done = subprocess.run(["docker", *words], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise NoImage(f"docker {words[0]} failed: {done.stderr[-2000:]}")


def scenario_container(image: str, guest: GuestFiles) -> DockerContainer:
    """A container, not started yet, in which `run_scenarios` runs tests."""
    packages = sysconfig.get_path("purelib")
    container = DockerContainer(image).with_command("sleep infinity")
    for source, target in (
        (REPOSITORY, "/repository"),
        (packages, "/packages"),
        (guest.kernel.parent, "/guest"),
    ):
        container = container.with_volume_mapping(str(source), target, "ro")
    environment = {
        "PYTHONPATH": "/repository:/packages",
        "PYTHONDONTWRITEBYTECODE": "1",
        BUILT_GUEST_VARIABLE: "/guest",
        IN_CONTAINER_VARIABLE: "1",
    }
    for name, value in environment.items():
        container = container.with_env(name, value)
    devices = ["/dev/kvm"] if os.access("/dev/kvm", os.R_OK | os.W_OK) else []
    return container.with_kwargs(network_mode="host", devices=devices, init=True)


def python_of(container: DockerContainer) -> str:
    """Its Python's version; the packages of this interpreter fit only the same one."""
    code, output = container.exec(
        ["python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    )
    assert code == 0, output.decode()
    return str(output.decode().strip())


def own_python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def run_scenarios(container: DockerContainer, scenarios: Sequence[str]) -> tuple[int, str]:
    """Run tests of this folder in the container; exit code and report."""
    words = ["python3", "-m", "pytest", "-p", "no:cacheprovider", "-rs", "-v"]
    words += ["-c", "/repository/pyproject.toml", "--rootdir", "/repository"]
    words += [f"/repository/integration/{scenario}" for scenario in scenarios]
    code, output = container.exec(["sh", "-c", f"cd /repository && exec {' '.join(words)}"])
    return code, output.decode(errors="replace")
