"""The contract held against real QEMU and its storage daemon: the judge of the simulated ones."""

from __future__ import annotations

from tests.contract.blocks import BitmapBehaviour, ExportBehaviour, NodeBehaviour
from tests.contract.jobs import JobBehaviour, pulling, pushing
from tests.contract.machine import MachineBehaviour, two_fds
from tests.contract.protocol import ProtocolBehaviour

__all__ = ["pulling", "pushing", "two_fds"]


class TestProtocol(ProtocolBehaviour):
    pass


class TestMachine(MachineBehaviour):
    pass


class TestNodes(NodeBehaviour):
    pass


class TestBitmaps(BitmapBehaviour):
    pass


class TestExports(ExportBehaviour):
    pass


class TestJobs(JobBehaviour):
    pass
