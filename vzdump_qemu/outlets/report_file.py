"""The file of a report page: whoever looks finds the old page or the new one, never half of one.

Owns where a page can be written; what is on it is `plan.report_page`'s.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress

from vzdump_qemu.errors import ConfigError, TargetError
from vzdump_qemu.stores.system import sync_directory

# What umask leaves of it: pages are for whoever may read files of the operator.
_FILE_MODE = 0o666


def check_report_path(path: str) -> None:
    """Show before a job that its page can be written there.

    Raises:
        ConfigError: the name or the directory is no good.
    """
    target = os.path.realpath(path)
    if os.path.exists(target) and not os.path.isfile(target):
        raise ConfigError(f"option 'report': '{path}' is no regular file", hint="name a new file")
    directory = os.path.dirname(target)
    if not os.path.isdir(directory):
        raise ConfigError(
            f"option 'report': directory '{directory}' does not exist", hint="create it first"
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigError(f"option 'report': '{directory}' is no directory to write to")


def write_report_file(path: str, page: str) -> None:
    """Write a page durably in place of an earlier one; blocks as long as its file system does.

    Raises:
        TargetError: an earlier page stays as it was.
    """
    # A link stays a link: what it points to is replaced.
    target = os.path.realpath(path)
    directory, name = os.path.split(target)
    temp_path = os.path.join(directory, f".{name}.{secrets.token_hex(4)}.tmp")
    try:
        fd = os.open(temp_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
        try:
            with open(fd, "w", encoding="utf-8", newline="\n") as file:
                file.write(page)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temp_path, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(temp_path)
            raise
        sync_directory(directory)
    except OSError as error:
        raise TargetError(f"unable to write '{path}' - {error.strerror or error}") from error
