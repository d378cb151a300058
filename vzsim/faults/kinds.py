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
    SLOW = "slow"  # each reply, or what a program takes, needs its time
    STALE = "stale"  # the channel still holds an answer to somebody's earlier question
    AGENT_DIES = "agent-dies"  # gone before it reads; the request waits until it is back
    AGENT_DIES_AFTER = "agent-dies-after"  # the effect came, then the agent is gone for a while
    EIO = "eio"
    ENOSPC = "enospc"
    EXDEV = "exdev"
    EROFS = "erofs"
    EDQUOT = "edquot"
    PARTIAL = "partial"  # half of the bytes, then the disk is full
    EXITS = "exits"  # a program ends with status 1 at the end of its input
    KILLED = "killed"  # a program is gone half way, by a signal
    KILLED_LATE = "killed-late"  # ... at the end of its input
    STALLS = "stalls"  # a program takes no input for a while
    HANGS = "hangs"  # a program never ends by itself
    # What others do at that moment.
    CANCEL_TOOL = "cancel-tool"  # a signal to the tool, before the effect
    CANCEL_TOOL_AFTER = "cancel-tool-after"  # ... after the effect
    KILL_TOOL = "kill-tool"  # SIGKILL before the effect
    KILL_TOOL_AFTER = "kill-tool-after"
    PAUSE_VM = "pause-vm"
    START_VM = "start-vm"
    FORCE_START = "force-start"  # of a VM that is off, whatever lock it has
    RESUME_VM = "resume-vm"
    STOP_VM = "stop-vm"  # by an operator who may stop a locked VM too
    LOCK_CLEARED = "lock-cleared"  # an operator takes the lock for a left-over one
    SECOND_RUN = "second-run"  # of the same tool on the same VM
    CANCEL_JOB = "cancel-job"
    QEMU_DIES = "qemu-dies"
    GUEST_POWERS_OFF = "guest-powers-off"
    GUEST_RESETS = "guest-resets"
    GUEST_PANICS = "guest-panics"
    GUEST_SUSPENDS = "guest-suspends"
    GUEST_WAKES = "guest-wakes"
    DISK_UNPLUGGED = "disk-unplugged"  # the last one, out of the running QEMU
    DISK_RESIZED = "disk-resized"  # the first one grows
    OTHER_JOB = "other-job"  # somebody cancels the backup job and starts one of his own
    OTHER_LOCK = "other-lock"  # another operation takes the VM's lock if it is free
    FD_LEAKS = "fd-leaks"  # a child of QEMU gets a copy of every descriptor and keeps it
    POWER_LOSS = "power-loss"  # of the whole node: what was not synced is gone
    CLOCK_BACK = "clock-back"
    CLOCK_FORWARD = "clock-forward"
    SUMMER_BEGINS = "summer-begins"  # only the local time jumps
    SUMMER_ENDS = "summer-ends"
    # What happens at a backup server.
    SERVER_DIES = "server-dies"  # before the effect; it is there again later
    SERVER_DIES_AFTER = "server-dies-after"  # ... after the effect
    PREVIOUS_PRUNED = "previous-pruned"  # the newest backup of the VM is removed
    PREVIOUS_FAILED = "previous-failed"  # ... is found damaged
    KEY_CHANGED = "key-changed"  # the node has another key from here on
    KEY_LOST = "key-lost"  # ... and here it has none any more
    TOKEN_REVOKED = "token-revoked"

    # Each is there once, and looked up often: no call into Python.
    __hash__ = object.__hash__

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
    FILES_MAKE = "files-make"
    FILES_WRITE = "files-write"
    FILES_SYNC = "files-sync"
    FILES_RENAME = "files-rename"
    FILES_REMOVE = "files-remove"
    COMPRESSOR = "compressor"
    COMMAND = "command"
    HOOK = "hook"
    PBS = "pbs"
    PBS_CONNECT = "pbs-connect"
    QUIET = "quiet"  # cannot fail by itself

    __hash__ = object.__hash__  # as above


KILLS = frozenset({Kind.KILL_TOOL, Kind.KILL_TOOL_AFTER, Kind.POWER_LOSS})
"""Kinds that the tool does not survive."""
ACTS = KILLS | {
    Kind.CANCEL_TOOL,
    Kind.CANCEL_TOOL_AFTER,
    Kind.PAUSE_VM,
    Kind.START_VM,
    Kind.FORCE_START,
    Kind.CANCEL_JOB,
    Kind.QEMU_DIES,
    Kind.GUEST_POWERS_OFF,
    Kind.GUEST_RESETS,
    Kind.GUEST_PANICS,
    Kind.GUEST_SUSPENDS,
    Kind.GUEST_WAKES,
    Kind.DISK_UNPLUGGED,
    Kind.DISK_RESIZED,
    Kind.OTHER_JOB,
    Kind.OTHER_LOCK,
    Kind.FD_LEAKS,
    Kind.POWER_LOSS,
    Kind.CLOCK_BACK,
    Kind.CLOCK_FORWARD,
    Kind.SUMMER_BEGINS,
    Kind.SUMMER_ENDS,
    Kind.RESUME_VM,
    Kind.STOP_VM,
    Kind.LOCK_CLEARED,
    Kind.SECOND_RUN,
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
        Family.QMP_CONNECT: (Kind.REFUSED, Kind.OTHER_CLIENT, Kind.STALL, Kind.SLOW),
        Family.AGENT: (
            Kind.ERROR,
            Kind.ERROR_AFTER,
            Kind.STALL,
            Kind.REPLY_LOST,
            Kind.AGENT_DIES,
            Kind.AGENT_DIES_AFTER,
        ),
        Family.AGENT_CONNECT: (
            Kind.REFUSED,
            Kind.OTHER_CLIENT,
            Kind.STALL,
            Kind.STALE,
            Kind.SLOW,
        ),
        Family.NODE: (Kind.ERROR, Kind.ERROR_AFTER, Kind.STALL),
        Family.POWER: (Kind.ERROR, Kind.ERROR_AFTER, Kind.STALL),
        Family.STORE: (Kind.ERROR, Kind.STALL),
        Family.INTAKE: (Kind.STALL,),
        Family.FILES_MAKE: (Kind.EIO, Kind.ENOSPC, Kind.EDQUOT, Kind.EROFS),
        Family.FILES_WRITE: (Kind.EIO, Kind.ENOSPC, Kind.EDQUOT, Kind.PARTIAL),
        Family.FILES_SYNC: (Kind.EIO, Kind.ENOSPC),
        Family.FILES_RENAME: (Kind.EIO, Kind.EXDEV, Kind.EROFS, Kind.EDQUOT),
        Family.FILES_REMOVE: (Kind.EIO, Kind.EROFS),
        Family.COMPRESSOR: (
            Kind.EXITS,
            Kind.KILLED,
            Kind.KILLED_LATE,
            Kind.STALLS,
            Kind.SLOW,
        ),
        Family.COMMAND: (Kind.EXITS, Kind.KILLED, Kind.STALL),
        Family.HOOK: (Kind.EXITS, Kind.KILLED, Kind.SLOW, Kind.HANGS),
        Family.PBS: (
            Kind.ERROR,
            Kind.ERROR_AFTER,
            Kind.STALL,
            Kind.REPLY_LOST,
            Kind.CLOSED_BEFORE,
            Kind.CLOSED_AFTER,
            Kind.ENOSPC,
            Kind.SERVER_DIES,
            Kind.SERVER_DIES_AFTER,
            Kind.PREVIOUS_PRUNED,
            Kind.PREVIOUS_FAILED,
            Kind.KEY_CHANGED,
            Kind.KEY_LOST,
            Kind.TOKEN_REVOKED,
        ),
        Family.PBS_CONNECT: (Kind.REFUSED, Kind.STALL, Kind.SERVER_DIES),
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
        # Of one reply; for a program, the time it takes for a mebibyte.
        Kind.SLOW: (2.0,),
        Kind.SERVER_DIES: (2.0, 700.0),
        Kind.SERVER_DIES_AFTER: (2.0, 700.0),
        Kind.CLOCK_BACK: (3600.0,),
        Kind.CLOCK_FORWARD: (86400.0,),
    }
)
"""Lengths that are drawn; the first is also the default."""

# A file call that fails by itself at a moment when others act would only repeat the async sites.
ACTLESS = frozenset(
    {
        Family.FILES_MAKE,
        Family.FILES_WRITE,
        Family.FILES_SYNC,
        Family.FILES_RENAME,
        Family.FILES_REMOVE,
        Family.COMPRESSOR,
    }
)

SYNCING = frozenset({Family.FILES_WRITE, Family.FILES_SYNC, Family.FILES_RENAME})
"""Sites between which it matters when the power goes."""
