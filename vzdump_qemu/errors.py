"""Every error the product raises on purpose, as one tree.

A class exists only where a caller reacts to it. Each has its own ``exit_code`` (the process ends
with it where a verb ends by that error; the backup verb itself ends with 255 as vzdump does) and
says whether the same act may be tried again (``retryable``).

    BackupError 1
    +-- ConfigError 10             options, VM configuration, storage configuration
    |   +-- VmNotFound 11
    |   +-- VmLocked 12            another operation owns the VM, or a lock was not to be had
    |   +-- StorageError 13        a storage or volume that is missing, wrong or not available
    +-- GuestError 20              the guest agent
    |   +-- AgentUnreachable 21    no agent answered: nothing was asked of the guest
    |   +-- AgentTimeout 22        asked, and no answer: the command may still be carried out
    |   +-- AgentCommandError 23   the agent answered with an error
    +-- QmpError 30                the monitor
    |   +-- QmpUnreachable 31      no connection: nothing was asked
    |   +-- QmpTimeout 32          asked, and no answer in time: the command may still run
    |   +-- QmpClosed 33           the peer closed the connection: the command may have run
    |   +-- QmpCommandError 34     QEMU answered with an error (class and text are kept)
    +-- JobError 40                the backup job inside QEMU failed or is not ours
    +-- VmaError 50                an archive that is not whole, or cannot be written as asked
    +-- PbsError 60
    |   +-- PbsCorrupt 61          what is stored in a backup is not what it should be
    |   +-- PbsKeyError 62         a key that is missing, wrong or not to be unlocked
    |   +-- PbsUnreachable 63      no connection, or it ended or stalled
    |   +-- PbsRefused 64          the server answered with an error (status and text are kept)
    +-- TargetError 70             where the archive goes: directory, file, disk full
    |   +-- CompressorError 71
    +-- PowerError 75              starting, stopping, suspending or resuming a VM
    +-- Interrupted 130            a signal or the caller asked us to stop
    +-- InternalError 99           a bug of ours
"""

from __future__ import annotations

from typing import ClassVar

INTERRUPTED_TEXT = "interrupted by signal"


class BackupError(Exception):
    """Root of all errors raised on purpose. ``str()`` is one line for the operator.

    Args:
        message: what went wrong, in the operator's words.
        hint: what to do next; empty if there is nothing better to say than the message.
    """

    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(BackupError):
    """Options, a VM configuration or a storage configuration that cannot be used."""

    exit_code = 10


class VmNotFound(ConfigError):
    """No configuration of that VM on this node."""

    exit_code = 11


class VmLocked(ConfigError):
    """Another operation owns the VM, or its lock was not to be had in time."""

    exit_code = 12
    retryable = True


class StorageError(ConfigError):
    """A storage or a volume that is missing, of the wrong kind or not available."""

    exit_code = 13


class GuestError(BackupError):
    """Something between us and the guest agent."""

    exit_code = 20


class AgentUnreachable(GuestError):
    """No agent answered the sync: nothing was asked of the guest."""

    exit_code = 21
    retryable = True


class AgentTimeout(GuestError):
    """The agent was asked and did not answer in time: the command may still be carried out."""

    exit_code = 22


class AgentCommandError(GuestError):
    """The agent answered with an error object.

    Args:
        error_class: QAPI error class, e.g. ``CommandNotFound``.
        description: the agent's own text.
    """

    exit_code = 23

    def __init__(self, *, error_class: str, description: str) -> None:
        super().__init__(f"Agent error: {description}")
        self.error_class = error_class
        self.description = description


class QmpError(BackupError):
    """Something between us and a QEMU monitor."""

    exit_code = 30


class QmpUnreachable(QmpError):
    """No connection to the monitor: nothing was asked of QEMU."""

    exit_code = 31
    retryable = True


class QmpTimeout(QmpError):
    """QEMU did not answer in time: the command may still be carried out."""

    exit_code = 32


class QmpClosed(QmpError):
    """The connection ended before the reply: the command may have been carried out."""

    exit_code = 33


class QmpCommandError(QmpError):
    """QEMU answered a command with an error; the VM is as it was unless the command says else.

    Args:
        command: the QMP command.
        error_class: QAPI error class: ``GenericError``, ``CommandNotFound``, ``DeviceNotFound``.
        description: QEMU's own text, untouched.
    """

    exit_code = 34

    def __init__(self, *, command: str, error_class: str, description: str) -> None:
        super().__init__(description.strip())
        self.command = command
        self.error_class = error_class
        self.description = description


class JobError(BackupError):
    """The backup job inside QEMU failed, ended oddly, or turned out not to be ours."""

    exit_code = 40


class DiskReadError(BackupError):
    """A disk could not be opened or read at its point in time."""

    exit_code = 41


class VmaError(BackupError):
    """A VMA stream that is not whole, or content that VMA cannot hold.

    Args:
        message: one line, in the words of the format.
        offset_bytes: where in the (uncompressed) stream, or None if no place can be named.
    """

    exit_code = 50

    def __init__(self, message: str, *, offset_bytes: int | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.offset_bytes = offset_bytes


class PbsError(BackupError):
    """Something between us and a Proxmox Backup Server."""

    exit_code = 60


class PbsCorrupt(PbsError):
    """A file or chunk of a PBS backup that is damaged or not what it should be."""

    exit_code = 61


class PbsKeyError(PbsError):
    """A key of a PBS backup that is missing, the wrong one, or cannot be unlocked."""

    exit_code = 62


class PbsUnreachable(PbsError):
    """No connection to a Proxmox Backup Server, or it ended: what was asked may have been done."""

    exit_code = 63
    retryable = True


class PbsRefused(PbsError):
    """A Proxmox Backup Server answered with an error; what was asked was not done.

    Args:
        status: HTTP status.
        text: the server's own words.
    """

    exit_code = 64

    def __init__(self, text: str, *, status: int, hint: str = "") -> None:
        super().__init__(text, hint=hint)
        self.status = status


class TargetError(BackupError):
    """The place where the archive goes failed: directory, file, disk full, rename."""

    exit_code = 70


class CompressorError(TargetError):
    """The compressor could not be started or did not end with 0."""

    exit_code = 71


class PowerError(BackupError):
    """Starting, stopping, suspending or resuming a VM failed."""

    exit_code = 75


class Interrupted(BackupError):
    """A signal or the caller asked the run to stop; everything was undone first."""

    exit_code = 130

    def __init__(self) -> None:
        super().__init__(INTERRUPTED_TEXT)


class InternalError(BackupError):
    """A bug of ours: a state that the code holds to be impossible."""

    exit_code = 99
