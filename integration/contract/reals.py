"""The real subjects of the contract: QEMU and its storage daemon, with the fakes' command lines."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.contract.fakes import (
    DAEMON_FEATURES,
    MACHINE_FEATURES,
    SOCKET_FEATURES,
    FileSubject,
    disk_options,
    guest_options,
)
from tests.contract.selection import Offer
from tests.contract.subject import Feature, Subject

QEMU = "qemu-system-x86_64"
STORAGE_DAEMON = "qemu-storage-daemon"
_START_S = 20.0
_MONITOR_COUNT = 2
_QEMU_FEATURES = MACHINE_FEATURES | SOCKET_FEATURES | {Feature.OOB}
_DAEMON_FEATURES = DAEMON_FEATURES | SOCKET_FEATURES


def _monitor_options(subject: FileSubject, *, dashes: str) -> list[str]:
    option = "--monitor" if dashes == "--" else "-mon"
    mode = "" if dashes == "--" else ",mode=control"
    words = []
    for index in range(_MONITOR_COUNT):
        path = subject.monitor_path(index)
        words += [f"{dashes}chardev", f"socket,id=mon{index},path={path},server=on,wait=off"]
        words += [option, f"chardev=mon{index}{mode}"]
    return words


@contextlib.contextmanager
def _running(name: str, features: frozenset[Feature], program: str) -> Iterator[Subject]:
    with tempfile.TemporaryDirectory(prefix="vzc-", dir="/tmp") as directory:
        subject = FileSubject(name, features, Path(directory))
        image = subject.new_path("disk0.raw")
        if program == QEMU:
            words = [*guest_options(image), *_monitor_options(subject, dashes="-")]
        else:
            words = [
                *disk_options(image, dashes="--"),
                *_monitor_options(subject, dashes="--"),
            ]
        process = subprocess.Popen([program, *words])
        try:
            _wait_for(process, Path(subject.monitor_path(_MONITOR_COUNT - 1)))
            yield subject
        finally:
            subject.close()
            process.kill()
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], path: Path) -> None:
    deadline_s = time.monotonic() + _START_S
    while True:
        assert process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < deadline_s
        with contextlib.suppress(ConnectionError, FileNotFoundError):
            import socket

            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(path))
                return
        time.sleep(0.01)


def _offer(name: str, program: str, features: frozenset[Feature]) -> Offer:
    missing = "" if shutil.which(program) else f"{program} is not installed"
    return Offer(features, lambda: _running(name, features, program), missing)


REALS = {
    "real-qemu": _offer("real-qemu", QEMU, _QEMU_FEATURES),
    "real-storage-daemon": _offer("real-storage-daemon", STORAGE_DAEMON, _DAEMON_FEATURES),
}
