"""The contract held against real QEMU and its storage daemon: the judge of the simulated ones."""

from tests.contract.behaviours import *  # noqa: F403
