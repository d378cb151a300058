"""Every behaviour of QEMU that is asked of a subject, in one list for all places that ask.

A place imports all of it: pytest then collects the classes there, with that place's subjects.
"""

from __future__ import annotations

from tests.contract.bitmaps import BitmapBehaviour as TestBitmaps
from tests.contract.exports import ExportBehaviour as TestExports
from tests.contract.jobs import JobBehaviour as TestJobs
from tests.contract.jobs import pulling, pushing
from tests.contract.machine import MachineBehaviour as TestMachine
from tests.contract.machine import two_fds
from tests.contract.nodes import NodeBehaviour as TestNodes
from tests.contract.protocol import ProtocolBehaviour as TestProtocol

__all__ = [
    "TestBitmaps",
    "TestExports",
    "TestJobs",
    "TestMachine",
    "TestNodes",
    "TestProtocol",
    "pulling",
    "pushing",
    "two_fds",
]
