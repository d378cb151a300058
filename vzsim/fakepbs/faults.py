"""The fault script of a server: what shall go wrong, where, and how often.

Owns the kinds, the counting of occurrences and the script's TOML; each fault acts in the module
whose work it spoils. Schema by example::

    [[fault]]
    kind = "cut"                  # the connection ends ...
    bytes = 1000000               # ... after so many bytes were received behind the upgrade
    endpoint = "GET /backup"      # on which upgrade; absent: any
    first = 2                     # from the second time on (default 1) ...
    count = 1                     # ... so many times (default 1, 0 for ever)

    [[fault]]
    kind = "reply"                # answered with this, and nothing is done
    endpoint = "POST /fixed_chunk"
    status = 500
    text = "internal error"

The other kinds are described at `FaultKind`. What is to be changed while a server runs (a lost
chunk, another certificate, a revoked token, a full disk) are methods of the server's parts.
"""

from __future__ import annotations

import enum
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from vzdump_qemu.errors import ConfigError


class FaultKind(enum.Enum):
    """What goes wrong."""

    # The connection ends after `bytes` were received, or sent, behind the upgrade.
    CUT = "cut"
    CUT_SENDING = "cut-sending"
    # Everything behind the upgrade passes at `bytes` per second.
    SLOW = "slow"
    # The request is answered with `status` and `text`, and nothing is done.
    REPLY = "reply"
    # No answer ever comes: nothing is done, or it is done.
    HANG = "hang"
    HANG_AFTER = "hang-after"
    # The stream alone ends, or the whole connection is told to go away.
    RESET = "reset"
    GOAWAY = "goaway"
    # A login that shows a ticket instead of a password is refused.
    RENEWAL_REFUSED = "renewal-refused"
    # An uploaded chunk is accepted, and lost or damaged on disk.
    CHUNK_LOST = "chunk-lost"
    CHUNK_DAMAGED = "chunk-damaged"
    # The previous backup turns out to have failed its verification.
    PREVIOUS_FAILED = "previous-failed"
    # From this request on, the datastore takes `bytes` more.
    DISK_FULL = "disk-full"


# Those that are about one request.
REQUEST_KINDS: Final = (
    FaultKind.REPLY, FaultKind.HANG, FaultKind.HANG_AFTER, FaultKind.RESET, FaultKind.GOAWAY,
)  # fmt: skip


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of the script."""

    kind: FaultKind
    endpoint: str = ""
    first: int = 1
    count: int = 1
    bytes: int = 0
    status: int = 500
    text: str = "internal error"


class _ScriptToml(msgspec.Struct, forbid_unknown_fields=True):
    fault: list[Fault] = []


@dataclass(slots=True)
class _Entry:
    fault: Fault
    seen_count: int = 0

    def strikes(self) -> bool:
        """Count one occurrence, and tell whether this is one that goes wrong."""
        self.seen_count += 1
        behind_first = self.seen_count - self.fault.first
        return behind_first >= 0 and (not self.fault.count or behind_first < self.fault.count)


class Faults:
    """A script with the count of how often each entry could have struck."""

    def __init__(self, script: Iterable[Fault] = ()) -> None:
        self._entries = [_Entry(fault) for fault in script]

    def add(self, fault: Fault) -> None:
        """One more; it counts from now on."""
        self._entries.append(_Entry(fault))

    def heal(self) -> None:
        """Nothing goes wrong any more."""
        self._entries.clear()

    def take(self, endpoint: str, *kinds: FaultKind) -> Fault | None:
        """The fault of one of these kinds that strikes here, if any; each entry counts this."""
        if not self._entries:
            return None
        fitting = [
            entry
            for entry in self._entries
            if entry.fault.kind in kinds and entry.fault.endpoint in ("", endpoint)
        ]
        struck = [entry.fault for entry in fitting if entry.strikes()]
        return struck[0] if struck else None


def read_faults(text: str) -> tuple[Fault, ...]:
    """Read a script. Raises: ConfigError."""
    try:
        return tuple(msgspec.convert(tomllib.loads(text), type=_ScriptToml).fault)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"fault script: {error}") from error
