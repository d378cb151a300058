"""A Proxmox Backup Server for tests: TLS, both HTTP versions, datastores on disk or in memory.

Everything a client can see follows the real server; what it does not have: other users' realms,
two-factor logins, synchronisation, tapes, and tasks that can be watched.

In memory, in virtual time::

    pbs = FakePbs(PbsConfig(), PbsSurroundings(now_s=..., chance=...))
    (reader, writer), task = pbs.connect()

On a socket::

    listener = PbsListener(pbs, Certificate.make(now_s))
    port = await listener.start()
"""

from vzsim.fakepbs.accounts import ALL_PRIVILEGES, Account, Accounts
from vzsim.fakepbs.certificate import Certificate
from vzsim.fakepbs.counters import Counters
from vzsim.fakepbs.datastore import Datastore, Place
from vzsim.fakepbs.faults import Fault, FaultKind, Faults, read_faults
from vzsim.fakepbs.files import DiskFiles, MemoryFiles
from vzsim.fakepbs.server import (
    DEFAULT_TOKEN,
    DEFAULT_USER,
    FakePbs,
    PbsConfig,
    PbsListener,
    PbsSurroundings,
)
from vzsim.fakepbs.service import PbsServeOptions, ServedPbs, serving
from vzsim.fakepbs.streams import memory_streams

__all__ = [
    "ALL_PRIVILEGES",
    "DEFAULT_TOKEN",
    "DEFAULT_USER",
    "Account",
    "Accounts",
    "Certificate",
    "Counters",
    "Datastore",
    "DiskFiles",
    "FakePbs",
    "Fault",
    "FaultKind",
    "Faults",
    "MemoryFiles",
    "PbsConfig",
    "PbsListener",
    "PbsServeOptions",
    "PbsSurroundings",
    "Place",
    "ServedPbs",
    "memory_streams",
    "read_faults",
    "serving",
]
