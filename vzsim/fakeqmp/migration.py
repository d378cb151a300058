"""Outgoing migration as far as its states go: no memory is sent anywhere.

Owns ``migrate``, ``migrate_cancel``, ``query-migrate`` and the capabilities that change the course
of events. Source: recorded sessions ``pve-status-migration``, ``pve-status-finish-migrate``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vzsim.fakeqmp.jobs import Emit
from vzsim.fakeqmp.outside import Timebase
from vzsim.fakeqmp.run_state import RunControl, RunState
from vzsim.fakeqmp.schema import CommandError, Dialect

_PASS_AFTER_S = 0.002
_ACTIVE_AFTER_S = 0.003
_SWITCH_AFTER_S = 0.008
_RAM_BYTES = 64 << 20
_PAGE_BYTES = 4096
_UNDER_WAY = ("setup", "active", "pre-switchover", "device", "cancelling")
_RAM_MEMBERS = (
    "postcopy-requests", "dirty-sync-count", "multifd-bytes", "pages-per-second",
    "downtime-bytes", "postcopy-bytes", "mbps", "dirty-sync-missed-zero-copy",
    "precopy-bytes", "duplicate", "dirty-pages-rate", "normal-bytes", "normal",
)  # fmt: skip


class Migration:
    """The one migration that a machine may have under way."""

    def __init__(
        self, *, control: RunControl, emit: Emit, timebase: Timebase, dialect: Dialect
    ) -> None:
        # QEMU 10 no longer has this one.
        self._old_members = () if dialect is Dialect.PVE else ("skipped",)
        self._control = control
        self._emit = emit
        self._timebase = timebase
        self._status = ""
        self._start_s = 0.0
        self._end_s = 0.0
        self._was_running = False
        self._capabilities: set[str] = set()

    def set_capabilities(self, given: Mapping[str, Any]) -> None:
        """``migrate-set-capabilities``. Raises: CommandError."""
        self._refuse_if_under_way()
        for entry in given["capabilities"]:
            if entry["state"]:
                self._capabilities.add(entry["capability"])
            else:
                self._capabilities.discard(entry["capability"])

    def start(self, given: Mapping[str, Any]) -> None:
        """``migrate``. Raises: CommandError."""
        self._refuse_if_under_way()
        if not given.get("uri") and not given.get("channels"):
            raise CommandError("need either 'uri' or 'channels' argument")
        self._start_s = self._timebase.now_s()
        self._was_running = self._control.is_running
        self._enter("setup")
        self._later(_PASS_AFTER_S, "setup", self._first_pass)
        self._later(_ACTIVE_AFTER_S, "setup", lambda: self._enter("active"))
        self._later(_SWITCH_AFTER_S, "active", self._switch_over)

    def cancel(self) -> None:
        """``migrate_cancel``: without a migration nothing happens."""
        if self._status not in _UNDER_WAY:
            return
        self._enter("cancelling")
        if self._control.state is RunState.FINISH_MIGRATE:
            if self._was_running:
                self._control.enter(RunState.RUNNING, event="RESUME")
            else:
                self._control.enter(RunState.PAUSED)
        self._enter("cancelled")

    def query(self) -> dict[str, Any]:
        """``query-migrate``."""
        if not self._status:
            return {}
        reply: dict[str, Any] = {"status": self._status}
        if self._status == "cancelled":
            return reply
        is_done = self._status == "completed"
        now_s = self._end_s if is_done else self._timebase.now_s()
        reply["total-time"] = int((now_s - self._start_s) * 1000)
        reply["setup-time"] = int(_PASS_AFTER_S * 1000)
        reply["downtime" if is_done else "expected-downtime"] = 2 if is_done else 300
        reply["ram"] = dict.fromkeys((*_RAM_MEMBERS, *self._old_members), 0) | {
            "total": _RAM_BYTES,
            "page-size": _PAGE_BYTES,
            "remaining": 0 if is_done else _RAM_BYTES,
            "transferred": _RAM_BYTES if is_done else 0,
        }
        return reply

    def _refuse_if_under_way(self) -> None:
        if self._status in _UNDER_WAY:
            raise CommandError("There's a migration process in progress")

    def _later(self, delay_s: float, status: str, act: Callable[[], None]) -> None:
        """Act then, if the migration is still in that status."""

        def due() -> None:
            if self._status == status:
                act()

        self._timebase.call_later(delay_s, due)

    def _enter(self, status: str) -> None:
        self._status = status
        if "events" in self._capabilities:
            self._emit("MIGRATION", {"status": status})

    def _first_pass(self) -> None:
        if "events" in self._capabilities:
            self._emit("MIGRATION_PASS", {"pass": 1})

    def _switch_over(self) -> None:
        if self._was_running:
            self._control.enter(RunState.FINISH_MIGRATE, event="STOP")
        else:
            self._control.enter(RunState.FINISH_MIGRATE)
        if "pause-before-switchover" in self._capabilities:
            self._enter("pre-switchover")
            return
        self._end_s = self._timebase.now_s()
        self._control.enter(RunState.POSTMIGRATE)
        self._enter("completed")
