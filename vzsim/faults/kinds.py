"""The catalogue of faults: which kinds can really happen at which family of sites.

Owns the names and their meaning; `vzsim.faults.plane` and the wrappers carry them out.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType


class Kind(enum.Enum):
    """One kind of fault. "The effect" is what the call would have done."""

    ERROR = "error"  # refused, no effect
    ERROR_AFTER = "error-after"  # the effect came, an error is reported
    STALL = "stall"  # the effect comes late, perhaps after the caller's time-out
    REPLY_LOST = "reply-lost"  # the effect came, no answer ever does
    WRONG_ID = "wrong-id"  # the effect came, the answer bears another request's id
    CLOSED_BEFORE = "closed-before"  # the connection ended before the effect
    CLOSED_AFTER = "closed-after"  # the connection ended after the effect, before the reply
    QEMU_DIES_AFTER = "qemu-dies-after"  # the effect came, then QEMU is gone
    QEMU_DIES_MIDWAY = "qemu-dies-midway"  # ... once the job is half done
    JOB_FAILS = "job-fails"  # the job meets a read error half way
    JOB_STALLS = "job-stalls"  # the job stands still half way
    REFUSED = "refused"  # nobody answers at the socket
    OTHER_CLIENT = "other-client"  # another client holds the socket for a while
    STALE = "stale"  # the channel still holds an answer to somebody's earlier question
    AGENT_DIES = "agent-dies"  # gone before it reads; the request waits until it is back
    AGENT_DIES_AFTER = "agent-dies-after"  # the effect came, then the agent is gone for a while
    EIO = "eio"
    ENOSPC = "enospc"
    PARTIAL = "partial"  # half of the bytes, then the disk is full
    EXITS = "exits"  # a program ends with status 1 at the end of its input
    KILLED = "killed"  # a program is gone half way, by a signal
    STALLS = "stalls"  # a program takes no input for a while
    # What others do at that moment.
    CANCEL_TOOL = "cancel-tool"  # a signal to the tool, before the effect
    CANCEL_TOOL_AFTER = "cancel-tool-after"  # ... after the effect
    KILL_TOOL = "kill-tool"  # SIGKILL before the effect
    KILL_TOOL_AFTER = "kill-tool-after"
    PAUSE_VM = "pause-vm"
    START_VM = "start-vm"
    CANCEL_JOB = "cancel-job"
    QEMU_DIES = "qemu-dies"
    GUEST_POWERS_OFF = "guest-powers-off"
    GUEST_RESETS = "guest-resets"
    CLOCK_BACK = "clock-back"

    def __lt__(self, other: Kind) -> bool:
        return self.value < other.value


class Family(enum.Enum):
    """Sites that fail in the same ways."""

    QMP = "qmp"
    QMP_BACKUP = "qmp-backup"
    QMP_CONNECT = "qmp-connect"
    AGENT = "agent"
    AGENT_CONNECT = "agent-connect"
    NODE = "node"
    POWER = "power"
    STORE = "store"
    INTAKE = "intake"
    FILES = "files"
    FILES_WRITE = "files-write"
    COMPRESSOR = "compressor"
    COMMAND = "command"
    QUIET = "quiet"  # cannot fail by itself


KILLS = frozenset({Kind.KILL_TOOL, Kind.KILL_TOOL_AFTER})
ACTS = KILLS | {
    Kind.CANCEL_TOOL,
    Kind.CANCEL_TOOL_AFTER,
    Kind.PAUSE_VM,
    Kind.START_VM,
    Kind.CANCEL_JOB,
    Kind.QEMU_DIES,
    Kind.GUEST_POWERS_OFF,
    Kind.GUEST_RESETS,
    Kind.CLOCK_BACK,
}
"""Kinds that others do; they can come at any site where the tool waits."""

_QMP = (
    Kind.ERROR,
    Kind.STALL,
    Kind.REPLY_LOST,
    Kind.WRONG_ID,
    Kind.CLOSED_BEFORE,
    Kind.CLOSED_AFTER,
    Kind.QEMU_DIES_AFTER,
)
KINDS_OF: Mapping[Family, tuple[Kind, ...]] = MappingProxyType(
    {
        Family.QMP: _QMP,
        Family.QMP_BACKUP: (*_QMP, Kind.JOB_FAILS, Kind.JOB_STALLS, Kind.QEMU_DIES_MIDWAY),
        Family.QMP_CONNECT: (Kind.REFUSED, Kind.OTHER_CLIENT, Kind.STALL),
        Family.AGENT: (
            Kind.ERROR,
            Kind.STALL,
            Kind.REPLY_LOST,
            Kind.AGENT_DIES,
            Kind.AGENT_DIES_AFTER,
        ),
        Family.AGENT_CONNECT: (Kind.REFUSED, Kind.OTHER_CLIENT, Kind.STALL, Kind.STALE),
        Family.NODE: (Kind.ERROR, Kind.ERROR_AFTER, Kind.STALL),
        Family.POWER: (Kind.ERROR, Kind.ERROR_AFTER, Kind.STALL),
        Family.STORE: (Kind.ERROR, Kind.STALL),
        Family.INTAKE: (Kind.STALL,),
        Family.FILES: (Kind.EIO, Kind.ENOSPC),
        Family.FILES_WRITE: (Kind.EIO, Kind.ENOSPC, Kind.PARTIAL),
        Family.COMPRESSOR: (Kind.EXITS, Kind.KILLED, Kind.STALLS),
        Family.COMMAND: (Kind.EXITS, Kind.KILLED, Kind.STALL),
        Family.QUIET: (),
    }
)

LENGTHS_S: Mapping[Kind, tuple[float, ...]] = MappingProxyType(
    {
        # Below and above the time-outs that are in use.
        Kind.STALL: (4.0, 40.0, 700.0),
        Kind.OTHER_CLIENT: (2.0, 40.0, 700.0),
        Kind.JOB_STALLS: (30.0,),
        Kind.STALLS: (30.0,),
        Kind.AGENT_DIES: (2.0, 30.0),
        Kind.AGENT_DIES_AFTER: (2.0, 30.0),
        Kind.CLOCK_BACK: (3600.0,),
    }
)
"""Lengths that are drawn; the first is also the default."""

# A file call that fails by itself at a moment when others act would only repeat the async sites.
ACTLESS = frozenset({Family.FILES, Family.FILES_WRITE, Family.COMPRESSOR})
