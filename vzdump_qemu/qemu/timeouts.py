"""How long each monitor and agent command may take before it is given up.

Source: host behaviour, section 6.4, column "today". Callers with a reason of their own (the
agent's liveness probe, `cont` after a job start, `backup` by target) pass their own limit.
"""

from __future__ import annotations

DEFAULT_TIMEOUT_S = 5.0

_TIMEOUTS_S: dict[str, float] = {
    "query-migrate": 3600.0,
    "guest-fsfreeze-freeze": 3600.0,
    "blockdev-snapshot-internal-sync": 3600.0,
    "blockdev-snapshot-delete-internal-sync": 3600.0,
    "guest-fsfreeze-thaw": 180.0,
    "nbd-server-stop": 25.0,
} | dict.fromkeys(
    (
        "blockdev-add",
        "blockdev-insert-medium",
        "block-export-add",
        "device_add",
        "device_del",
        "netdev_add",
        "netdev_del",
        "object-add",
        "object-del",
        "quit",
    ),
    60.0,
) | dict.fromkeys(
    (
        "query-backup",
        "backup-cancel",
        "query-block-jobs",
        "block-job-cancel",
        "query-savevm",
        "savevm-start",
        "savevm-end",
        "guest-shutdown",
        "blockdev-del",
        "blockdev-mirror",
        "blockdev-reopen",
        "blockdev-remove-medium",
        "block-commit",
        "block-stream",
        "block-export-del",
        "job-complete",
        "drive-mirror",
        "guest-fstrim",
    ),
    600.0,
)  # fmt: skip

_MEDIUM_PREFIXES = ("eject", "change")
_MEDIUM_TIMEOUT_S = 60.0


def command_timeout_s(command: str) -> float:
    """Limit of one command, in seconds; an unknown command gets the default."""
    if command.startswith(_MEDIUM_PREFIXES):
        return _MEDIUM_TIMEOUT_S
    return _TIMEOUTS_S.get(command, DEFAULT_TIMEOUT_S)
