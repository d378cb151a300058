"""The contract held against the simulated QEMU, in memory and behind real sockets."""

from tests.contract.behaviours import *  # noqa: F403
