"""Where things are kept for a VM that is known by its sockets alone.

Owns paths, and the number of a VM that was given none. Everything hangs on the monitor's socket:
one directory of ours for each, whoever starts the backup and whatever number the VM is given.
Source: architecture, section 5.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.qemu.unix_socket import SOCKET_PATH_BYTES_MAX

VMID_MIN = 100
VMID_MAX = 999_999_999
_ROOT_STATE = "/var/lib/vzdump-qemu"
_SUBDIRECTORY = "sockets"
_DERIVED_VMID_MIN = 100_000_000
_FLEECING_NAME = re.compile(r"vzdump-fleece-[0-9a-f]{12}-[0-9]+\.qcow2")


def state_directory(environment: Mapping[str, str], *, user_id: int) -> str:
    """Where this user's journals are: the system's place for root, else that of the user's own.

    Raises: ConfigError if a user has neither a state directory nor a home.
    """
    if user_id == 0:
        return _ROOT_STATE
    given, home = environment.get("XDG_STATE_HOME", ""), environment.get("HOME", "")
    if given.startswith("/"):
        return f"{given.rstrip('/')}/vzdump-qemu"
    if not home:
        raise ConfigError(
            "there is no directory for the journal of a backup", hint="set HOME or XDG_STATE_HOME"
        )
    return f"{home.rstrip('/')}/.local/state/vzdump-qemu"


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketLayout:
    """Paths of one VM.

    Attributes:
        qmp_socket: absolute, without symbolic links.
        agent_socket: absolute; empty without an agent.
        state_directory: of the user.
        fleecing_directory: for scratch images; empty for `own_directory`.
    """

    qmp_socket: str
    agent_socket: str
    state_directory: str
    fleecing_directory: str

    @property
    def digest(self) -> str:
        """Tells this socket from every other."""
        return hashlib.sha256(os.fsencode(self.qmp_socket)).hexdigest()[:12]

    @property
    def derived_vmid(self) -> int:
        """The number of a VM that was given none; the same for a socket every time."""
        return _DERIVED_VMID_MIN + int(self.digest, 16) % (VMID_MAX + 1 - _DERIVED_VMID_MIN)

    @property
    def own_directory(self) -> str:
        """Journals; nobody but the user may enter it."""
        return f"{self.state_directory}/{_SUBDIRECTORY}/{self.digest}"

    @property
    def log_directory(self) -> str:
        return f"{self.state_directory}/log"

    @property
    def private_directory(self) -> str:
        """For the socket of an NBD server of ours."""
        return f"{self.own_directory}/n"

    @property
    def lock_paths(self) -> tuple[str, str]:
        """The lock that users share, and the one for where nothing may be put beside a socket."""
        return f"{self.qmp_socket}.vzdump-lock", f"{self.own_directory}/lock"

    def require_short_path(self) -> None:
        """Raise ConfigError if no socket fits into `private_directory`."""
        if len(os.fsencode(self.private_directory)) + 2 > SOCKET_PATH_BYTES_MAX:
            raise ConfigError(
                f"the path '{self.private_directory}' is too long for a socket",
                hint="name a shorter directory with --state-dir",
            )

    def fleecing_path(self, name: str) -> str:
        directory = self.fleecing_directory or self.own_directory
        return f"{directory}/vzdump-fleece-{self.digest}-{name}.qcow2"


def is_fleecing_path(path: str) -> bool:
    """Whether a file bears the name of a scratch image of ours."""
    return _FLEECING_NAME.fullmatch(os.path.basename(path)) is not None
