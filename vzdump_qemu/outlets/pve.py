"""The platform's own notification system, asked through its Perl library.

Owns the one call; targets, rules and wording are the cluster's configuration. Source: host
behaviour, section 1.14.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from vzdump_qemu.errors import BackupError
from vzdump_qemu.outlet_ports import Message

# The library tells each target in turn and has limits of its own for them.
_TIMEOUT_S = 120.0
# It tells of targets that failed without failing itself.
_FAILURE_WORDS = ("ERROR", "could not notify")


class BridgeAnswer(Protocol):
    """What the platform's library printed during a call."""

    @property
    def lines(self) -> Sequence[str]: ...


class PlatformBridge(Protocol):
    """Calls a method of the child that runs the platform's library."""

    async def call(
        self,
        method: str,
        params: Mapping[str, Any],
        *,
        timeout_s: float,
        error_type: type[BackupError],
    ) -> BridgeAnswer: ...


class PlatformOutlet:
    """`MessageOutlet` to the notification system of a PVE node."""

    name = "notification system"

    def __init__(self, bridge: PlatformBridge) -> None:
        self._bridge = bridge

    async def send(self, message: Message) -> None:
        """As the port says."""
        answer = await self._bridge.call(
            "notify",
            {
                "severity": "error" if message.failed else "info",
                "template": message.template_name,
                "data": dict(message.template_data),
                "fields": dict(message.fields),
            },
            timeout_s=_TIMEOUT_S,
            error_type=BackupError,
        )
        failures = [line for line in answer.lines if any(word in line for word in _FAILURE_WORDS)]
        if failures:
            raise BackupError("; ".join(failures))
