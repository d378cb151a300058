"""The guardian process: waits for the tool's death and puts back what its run left.

Run as ``python -m vzdump_qemu.cli.guard ADDRESS… VMID``, with the control socket as standard input;
the address is the node's own. Small while it waits: the engine is imported after the death, while
the stream is drained already. Source: architecture, section 6.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading

from vzdump_qemu.stores.guardian import FAREWELL, HOLD, RELEASE

_FDS_MAX = 4
_READ_BYTES = 1 << 20


def main() -> int:
    """Watch, then recover; the exit code is 0 if nothing is left open."""
    address, vmid = tuple(sys.argv[1:-1]), int(sys.argv[-1])
    # Whoever ends the tool politely ends it with its undo; the guardian outlives that.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    held = _wait_for_end(socket.socket(fileno=0))
    if held is None:
        return 0
    # QEMU must find a reader until its job is cancelled: a guest write that has to save old data
    # first would wait for ever on a full pipe, or fail on a broken one.
    drains = [threading.Thread(target=_drain, args=(fd,), daemon=True) for fd in held]
    for drain in drains:
        drain.start()
    try:
        return 0 if _recover(address, vmid) else 1
    finally:
        # A job that could not be cancelled goes on, and so does its reader.
        for drain in drains:
            drain.join()


def _wait_for_end(control: socket.socket) -> list[int] | None:
    """Descriptors held at the tool's death, or None after a farewell."""
    held: list[int] = []
    while True:
        try:
            word, fds, _, _ = socket.recv_fds(control, 16, _FDS_MAX)
        except ConnectionResetError:
            word, fds = b"", []
        if word == HOLD:
            held.extend(fds)
        elif word == RELEASE:
            while held:
                os.close(held.pop())
        elif word == FAREWELL:
            return None
        else:
            return held


def _drain(fd: int) -> None:
    os.set_blocking(fd, True)
    while os.read(fd, _READ_BYTES):
        pass


def _recover(address: tuple[str, ...], vmid: int) -> bool:
    import asyncio

    from vzdump_qemu.cli.recovering import recover_after_death

    return asyncio.run(recover_after_death(address, vmid))


if __name__ == "__main__":
    raise SystemExit(main())
