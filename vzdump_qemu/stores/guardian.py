"""Having somebody watch over our death: the tool's side of its guardian process.

Owns starting it, handing it the read end of the stream, and sending it home. The guardian keeps
that read end open, so that a QEMU whose tool was killed never sees a broken pipe; what it does
then is `cli.guard`'s. Source: architecture, section 6.

The control channel is a socket: its end without a farewell is our death.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from vzdump_qemu.stores.system import start_thread

FAREWELL = b"q"
HOLD = b"h"
RELEASE = b"r"
_EXIT_TIMEOUT_S = 5.0


class Guardian:
    """Watches over the runs of one process, each VM by a process of its own.

    Args:
        argv: of the guardian's program, without the VM's id, which is appended.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = tuple(argv)
        self._controls: dict[int, socket.socket] = {}

    def of_vm(self, vmid: int) -> VmGuardian:
        """The one that watches over that VM's run."""
        return VmGuardian(self._controls, vmid)

    @contextmanager
    def watch(self, vmid: int) -> Iterator[Callable[[], None]]:
        """Have it there while the block runs. Without one the run goes on, less guarded.

        Yields:
            Sends it home at the block's end. Uncalled, it takes the end for our death and does
            what the run could not.
        """
        process = self._start(vmid)
        farewells: list[bytes] = []
        try:
            yield lambda: farewells.append(FAREWELL)
        finally:
            control = self._controls.pop(vmid, None)
            if control is not None:
                with suppress(OSError):
                    for word in farewells:
                        control.send(word)
                control.close()
            if process is not None and farewells:
                self._await_end(process)

    def _start(self, vmid: int) -> subprocess.Popen[bytes] | None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # A session of its own: what ends our process group must not end it as well.
            process = subprocess.Popen(
                [*self._argv, str(vmid)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        except OSError:
            ours.close()
            return None
        finally:
            theirs.close()
        self._controls[vmid] = ours
        return process

    def _await_end(self, process: subprocess.Popen[bytes]) -> None:
        if self._controls:
            # Another VM's run goes on, and its guest may be frozen this very moment.
            start_thread(lambda: _reap(process), name="reap-guardian")
        else:
            _reap(process)


class VmGuardian:
    """Watches over one VM's run; without its process every call does nothing."""

    def __init__(self, controls: Mapping[int, socket.socket], vmid: int) -> None:
        self._controls = controls
        self._vmid = vmid

    def hold(self, fd: int) -> None:
        """Let it hold a copy of this descriptor until `release`."""
        self._tell(HOLD, [fd])

    def release(self) -> None:
        """Let it close what it holds."""
        self._tell(RELEASE, [])

    def _tell(self, word: bytes, fds: list[int]) -> None:
        control = self._controls.get(self._vmid)
        if control is not None:
            with suppress(OSError):
                socket.send_fds(control, [word], fds)


def _reap(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_EXIT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
