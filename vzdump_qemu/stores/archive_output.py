"""Where an archive's bytes end up: a temporary file that gets its name once it is whole.

Owns the file system calls that decide about an archive's life, the durable renaming and the
removal of what was given up. Leaves what is written, and when which of these is due, to
`vzdump_qemu.stores.vma_intake`. Follows host behaviour 1.7 (steps 8, 22, 30).
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from vzdump_qemu.errors import TargetError
from vzdump_qemu.ports import ArchiveTarget
from vzdump_qemu.stores.system import sync_directory

# Owner and group may read: the archive holds all of the guest's secrets.
_ARCHIVE_MODE = 0o640
# Where hard links are not offered (FAT, some network and FUSE file systems).
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL})
_SPACE_HINT = "free space on the backup target, or choose another one"


class TargetFiles:
    """The file system calls that decide about an archive's life, one method each.

    All raise OSError, and all may block for as long as the target stalls.
    """

    def open_temp(self, path: str) -> int:
        """Unlink a left-over and create the file anew, close-on-exec, mode 0640 less umask."""
        with suppress(FileNotFoundError):
            os.unlink(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return os.open(path, flags, _ARCHIVE_MODE)

    def sync(self, fd: int) -> None:
        """Make a file's content durable."""
        os.fsync(fd)

    def size_bytes(self, fd: int) -> int:
        """Length of an open file."""
        return os.fstat(fd).st_size

    def identity(self, fd: int) -> os.stat_result:
        """What tells an open file from every other."""
        return os.fstat(fd)

    def means(self, path: str, identity: os.stat_result) -> bool:
        """Whether a name means that file."""
        try:
            return os.path.samestat(os.lstat(path), identity)
        except FileNotFoundError:
            return False

    def link(self, path: str, new_path: str) -> None:
        """Give a file a second name; fails if that name is taken."""
        os.link(path, new_path, follow_symlinks=False)

    def rename(self, path: str, new_path: str) -> None:
        """Rename where links are not offered; a taken name is refused, as far as one can see."""
        if os.path.lexists(new_path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        os.rename(path, new_path)

    def unlink(self, path: str) -> None:
        """Remove a name."""
        os.unlink(path)

    def sync_directory(self, path: str) -> None:
        """Make a directory's names durable."""
        sync_directory(path)

    def publish(self, temp_path: str, final_path: str) -> None:
        """Move a synced file to its final name, durably, and never over another file.

        If it fails the final name is not there, unless another file has it.
        """
        try:
            self.link(temp_path, final_path)
            linked = True
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self.rename(temp_path, final_path)
            linked = False
        try:
            if linked:
                self.unlink(temp_path)
            self.sync_directory(os.path.dirname(final_path))
        except OSError:
            # Not known to be durable, so it must not look like an archive.
            with suppress(OSError):
                self.unlink(final_path)
            raise


def reason_of(error: OSError) -> str:
    """What the system says of it."""
    return os.strerror(error.errno) if error.errno else str(error)


def target_error(text: str, error: OSError) -> TargetError:
    """An error of the target, with what can be done about it."""
    no_space = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return TargetError(f"{text} - {reason_of(error)}", hint=_SPACE_HINT if no_space else "")


class ArchiveOutput:
    """One archive's temporary file until it is published, or standard output.

    All methods may block for as long as the target stalls; `close` does not.

    Args:
        stdout_fd: written to if the target has no final path; stays the caller's.

    Attributes:
        fd: to write to; -1 after `close`.
        text: what it is, for messages.

    Raises:
        TargetError: it cannot be opened; nothing is left behind.
    """

    def __init__(self, target: ArchiveTarget, *, files: TargetFiles, stdout_fd: int) -> None:
        self._target = target
        self._files = files
        self._named: os.stat_result | None = None
        self.is_file = bool(target.final_path)
        self.text = target.temp_path if self.is_file else "standard output"
        try:
            self.fd = files.open_temp(target.temp_path) if self.is_file else os.dup(stdout_fd)
        except OSError as error:
            raise target_error(f"unable to open '{self.text}'", error) from error

    def sync(self) -> int:
        """Make the file's content durable; its length in bytes. Raises TargetError."""
        try:
            self._files.sync(self.fd)
            return self._files.size_bytes(self.fd)
        except OSError as error:
            raise target_error(f"unable to sync '{self.text}'", error) from error

    def publish(self) -> None:
        """Give the synced file its final name, durably, and never over another file.

        Raises:
            TargetError: no name was given, or `remove` takes it back.
        """
        temp_path, final_path = self._target.temp_path, self._target.final_path
        try:
            self._named = self._files.identity(self.fd)
            self._files.publish(temp_path, final_path)
        except OSError as error:
            raise TargetError(
                f"unable to rename '{temp_path}' to '{final_path}'", hint=reason_of(error)
            ) from error

    def remove(self) -> None:
        """Take away every name of the file, durably; standard output has none. Idempotent.

        Raises:
            TargetError: some name may be left.
        """
        if not self.is_file:
            return
        target = self._target
        try:
            if self._named is not None and self._files.means(target.final_path, self._named):
                # Publishing failed half way, and so did taking the name back at once.
                self._files.unlink(target.final_path)
            with suppress(FileNotFoundError):
                self._files.unlink(target.temp_path)
            # Whoever is told that it is gone forgets it: a power loss must not bring it back.
            self._files.sync_directory(os.path.dirname(target.temp_path))
        except OSError as error:
            raise target_error(f"unable to remove '{self.text}'", error) from error

    def close(self) -> None:
        """Let go of the descriptor. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)
