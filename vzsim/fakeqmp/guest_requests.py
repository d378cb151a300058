"""Writes of the guest's own devices: what a failed one does to the machine.

A full storage stops the machine and keeps the request for another try after ``cont`` (QEMU's
default policy); other errors are the guest's to bear. Source: recorded session
``stock-pull-fleece-full-guest``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from vzsim.fakeqmp.run_state import RunState
from vzsim.fakeqmp.schema import Dialect

if TYPE_CHECKING:
    from vzsim.fakeqmp.machine import Machine


_Request = tuple[str, int, bytes, Callable[[int], None]]
"""Device id, offset in bytes, what to write, whom to tell."""


class GuestRequests:
    """Requests of one machine's guest."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._kept: list[_Request] = []

    def submit(
        self, device_id: str, offset_bytes: int, data: bytes, done: Callable[[int], None]
    ) -> None:
        """A write of the guest; `done` gets 0 or an errno, perhaps much later."""
        request = device_id, offset_bytes, data, done
        self._machine.guest_write(device_id, offset_bytes, data, partial(self._ended, request))

    def machine_runs(self) -> None:
        """The machine goes on: kept requests are tried again."""
        if self._kept:
            kept, self._kept = self._kept, []
            for device_id, *_ in kept:
                backend = self._machine.block.backend_of(device_id)
                if backend is not None:
                    backend.io_status = "ok"
            self._machine.timebase.call_later(0.0, lambda: self._try_all(kept))

    def _try_all(self, requests: list[_Request]) -> None:
        for device_id, offset_bytes, data, done in requests:
            self.submit(device_id, offset_bytes, data, done)

    def _ended(self, request: _Request, errno_code: int) -> None:
        if errno_code == errno.ENOSPC:
            self._stop_for(request)
        else:
            done = request[3]
            done(errno_code)

    def _stop_for(self, request: _Request) -> None:
        machine = self._machine
        backend = machine.block.backend_of(request[0])
        node = backend.node if backend else None
        data: dict[str, Any] = {
            "device": backend.device_id if backend else "",
            "nospace": True,
            "node-name": node.top.name if node else "",
            "reason": os.strerror(errno.ENOSPC),
            "operation": "write",
            "action": "stop",
        }
        if machine.config.dialect is Dialect.PVE and backend is not None:
            data["qom-path"] = f"/machine/peripheral/{backend.qdev}"
        self._kept.append(request)
        if backend is not None:
            backend.io_status = "nospace"
        machine.emit("BLOCK_IO_ERROR", data)
        # Requests that are under way too fail before the machine stands.
        machine.timebase.call_later(0.0, self._halt)

    def _halt(self) -> None:
        if self._machine.control.is_running:
            self._machine.control.halt_for(RunState.IO_ERROR)
