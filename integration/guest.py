"""A tiny real guest: Debian's cloud kernel, busybox and the real guest agent in one initramfs.

Owns finding or fetching the parts and packing them; what the guest does is in ``guest_parts``: it
runs the agent and keeps writing to its disks, in one of two ways that its command line chooses.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("linux-image-cloud-amd64", "busybox-static", "qemu-guest-agent")
BUSYBOX = Path("/bin/busybox")
# A directory with a guest that was built before, as in a container.
BUILT_GUEST_VARIABLE = "VZDUMP_QEMU_BUILT_GUEST"
# While that file is there, the guest's agent refuses to freeze.
HOOK_REFUSAL = "/run/refuse-freeze"
LOGIN = ("root", "sesame")
_PASSWORD_ENTRY = (
    "root:$5$vzdump$4RMJKYLD9KnKsbAZ5vamDeKx6os1c1xrEn5fiBhj6p8:0:0:root:/root:/bin/sh\n"
)
_PARTS = Path(__file__).parent / "guest_parts"
_AGENT = "usr/sbin/qemu-ga"
_MODULES = ("virtio_pci", "virtio_console", "virtio_blk", "virtio_scsi", "sd_mod")
_LATER_MODULES = ("efivarfs",)


@dataclass(frozen=True)
class GuestFiles:
    """What boots the guest, and the program that judges its journals on the host as well."""

    kernel: Path
    initramfs: Path
    scribe: Path

    def arguments(self, console: Path, *, scribed_disks: int = 0) -> str:
        """The ``args:`` of a configuration; the guest's console goes to a file.

        Args:
            scribed_disks: number of disks, labelled data0, data1, ..., that it writes in step; 0
                for the guest that writes ticks to its first disk.
        """
        boot = f"-kernel {self.kernel} -initrd {self.initramfs} -append 'panic=-1 quiet"
        if not scribed_disks:
            return f"{boot} console=ttyS0' -serial file:{console}"
        # The first port is that of `serial0: socket`; the guest's login is there.
        return (
            f"{boot} console=ttyS1 scribe={scribed_disks}' "
            f"-chardev file,id=console,append=on,path={console} -device isa-serial,chardev=console"
        )


class NoGuest(Exception):
    """The guest cannot be built here; the text says why."""


def build_guest(directory: Path) -> GuestFiles:
    """Build the guest below `directory` from what is installed, else from fetched packages.

    Raises: NoGuest.
    """
    if built := os.environ.get(BUILT_GUEST_VARIABLE):
        return _files(Path(built))
    if not BUSYBOX.exists():
        raise NoGuest("busybox-static is not installed")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoGuest("there is no C compiler (apt install gcc libc6-dev)")
    root = package_root(directory)
    [kernel] = sorted((root / "boot").glob("vmlinuz-*-cloud-amd64"))[-1:]
    files = _files(directory)
    shutil.copy(kernel, files.kernel)
    _run(compiler, "-O2", "-static", "-o", str(files.scribe), str(_PARTS / "scribe.c"))
    tree = directory / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("bin", "etc", "sbin", "usr/sbin"):
        (tree / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, tree / "bin/busybox")
    shutil.copy(files.scribe, tree / "bin/scribe")
    shutil.copy(root / _AGENT, tree / _AGENT)
    copy_libraries(root / _AGENT, tree)
    version = kernel.name.removeprefix("vmlinuz-")
    copy_modules(
        root / "lib/modules" / version,
        tree / "lib/modules" / version,
        [*_MODULES, *_LATER_MODULES],
    )
    for name, target in (("init", "init"), ("hook", "hook"), ("shutdown", "sbin/shutdown")):
        shutil.copy(_PARTS / name, tree / target)
        (tree / target).chmod(0o755)
    (tree / "modules.wanted").write_text(" ".join(_MODULES))
    (tree / "etc/passwd").write_text(_PASSWORD_ENTRY)
    pack_initramfs(tree, files.initramfs)
    return files


def _files(directory: Path) -> GuestFiles:
    return GuestFiles(
        kernel=directory / "vmlinuz",
        initramfs=directory / "initramfs.gz",
        scribe=directory / "scribe",
    )


def package_root(directory: Path) -> Path:
    """Where the files of `PACKAGES` are: this system, or unpacked below `directory`.

    Raises: NoGuest.
    """
    return _installed_root() or _fetch_root(directory)


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


def copy_libraries(program: Path, tree: Path) -> None:
    """Copy what a program is linked with. Raises NoGuest."""
    listed = _run("ldd", str(program))
    if "not found" in listed:
        raise NoGuest(f"libraries of '{program.name}' are missing: install its package")
    for path in re.findall(r"(/\S+) \(0x", listed):
        target = tree / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def copy_modules(source: Path, target: Path, names: Sequence[str]) -> None:
    """Copy the wanted modules with all that they depend on, and say so in ``modules.dep``."""
    target.mkdir(parents=True)
    built_in = {
        Path(line).name.partition(".")[0].replace("-", "_")
        for line in (source / "modules.builtin").read_text().splitlines()
    }
    sources = {
        path.name.partition(".")[0].replace("-", "_"): path for path in source.rglob("*.ko*")
    }
    needs: dict[str, list[str]] = {}
    open_names = list(names)
    while open_names:
        name = open_names.pop()
        if name in needs or name in built_in:
            continue
        if name not in sources:
            raise NoGuest(f"the kernel has no module '{name}'")
        code = _module_code(sources[name])
        (target / f"{name}.ko").write_bytes(code)
        needs[name] = _named_dependencies(code)
        open_names += needs[name]
    lines = [
        f"{name}.ko: {' '.join(f'{below}.ko' for below in _all_below(name, needs))}\n"
        for name in needs
    ]
    (target / "modules.dep").write_text("".join(lines))


def _module_code(path: Path) -> bytes:
    if path.suffix == ".xz":
        return subprocess.run(["xz", "-dc", path], check=True, capture_output=True).stdout
    return path.read_bytes()


def _named_dependencies(code: bytes) -> list[str]:
    """Names in a module's own ``depends=`` field."""
    match = re.search(rb"\0depends=([^\0]*)\0", code)
    text = match[1].decode() if match else ""
    return [name.replace("-", "_") for name in text.split(",") if name]


def _all_below(name: str, needs: dict[str, list[str]]) -> list[str]:
    """In the order of depmod: what is inserted last stands first."""
    found: list[str] = []
    for below in needs[name]:
        if below in needs:
            for entry in (below, *_all_below(below, needs)):
                if entry in found:
                    found.remove(entry)
                found.append(entry)
    return found


def pack_initramfs(tree: Path, path: Path) -> None:
    """Make an initramfs of a directory tree."""
    names = sorted(str(entry.relative_to(tree)) for entry in tree.rglob("*"))
    packed = subprocess.run(
        [BUSYBOX, "cpio", "-o", "-H", "newc"],
        input="\n".join(names).encode(),
        cwd=tree,
        check=True,
        capture_output=True,
    ).stdout
    path.write_bytes(gzip.compress(packed, compresslevel=1))


def _run(*argv: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(argv, cwd=cwd, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoGuest(f"{argv[0]} failed: {error}") from error
    return done.stdout
