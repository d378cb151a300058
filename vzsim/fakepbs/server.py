"""The server as a whole: `FakePbs` on any loop, `PbsListener` on a socket with TLS.

Owns putting the parts together, connections in memory for simulations, and the certificate.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from vzdump_qemu.formats.pbs.fingerprint import Fingerprint
from vzdump_qemu.formats.pbs.names import BackupRef
from vzsim.fakepbs.accounts import Account, Accounts
from vzsim.fakepbs.admission import Admission
from vzsim.fakepbs.backup_session import BackupSession, SessionTools
from vzsim.fakepbs.certificate import Certificate
from vzsim.fakepbs.chunk_store import Collected
from vzsim.fakepbs.connection import Around, Connection, ConnectionTools, Session
from vzsim.fakepbs.counters import Counters
from vzsim.fakepbs.datastore import Datastore, Place
from vzsim.fakepbs.faults import Fault, Faults
from vzsim.fakepbs.files import DatastoreFiles, MemoryFiles
from vzsim.fakepbs.management import Management
from vzsim.fakepbs.store_calls import StoreCalls
from vzsim.fakepbs.streams import Streams, memory_streams
from vzsim.fakepbs.uploads import Offload, in_place
from vzsim.fakepbs.verification import collect_garbage, verify_locked

DEFAULT_USER = Account(auth_id="root@pam", secret="correct horse")
DEFAULT_TOKEN = Account(auth_id="root@pam!vzdump", secret="5e7c9d1a-0000-4000-8000-00000000b4c6")
_TLS_START_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PbsConfig:
    """What kind of server it is.

    Attributes:
        version: that it claims, three numbers; 4 and later know ``http-only`` logins, 4.1.5 and
            later indexes without a size.
        refusal_delay_s: before 401; real servers take 3. Before 403 a sixth of it.
        verify_new: whether each backup is verified at once when it is finished.
    """

    datastores: tuple[str, ...] = ("tank",)
    accounts: tuple[Account, ...] = (DEFAULT_USER, DEFAULT_TOKEN)
    version: str = "4.2.3"
    refusal_delay_s: float = 3.0
    verify_new: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PbsSurroundings:
    """Where a server takes time, chance and files from.

    Attributes:
        now_s: seconds since the epoch.
        chance: so many random bytes.
        files: where the datastore of that name is kept.
        offload: where uploaded chunks are decompressed and hashed.
    """

    now_s: Callable[[], float]
    chance: Callable[[int], bytes] = field(repr=False)
    files: Callable[[str], DatastoreFiles] | None = None
    offload: Offload = in_place


class FakePbs:
    """A backup server; connections come from `connect` or a `PbsListener`.

    Attributes:
        counters: what was done so far.
        faults: what shall go wrong; may be changed at any time.
        accounts: who may log in; may be changed at any time.
        datastores: by name.
    """

    def __init__(
        self, config: PbsConfig, surroundings: PbsSurroundings, script: Sequence[Fault] = ()
    ) -> None:
        now_s = surroundings.now_s
        files = surroundings.files or (lambda _name: MemoryFiles(now_s))
        self.config = config
        self.counters = Counters()
        self.faults = Faults(script)
        self.accounts = Accounts(config.accounts, ticket_key=surroundings.chance(32), now_s=now_s)
        self.datastores: Mapping[str, Datastore] = {
            name: Datastore(name, files(name), now_s) for name in config.datastores
        }
        self._sessions: set[Session] = set()
        session_tools = SessionTools(
            version=tuple(int(part) for part in config.version.split(".")),
            counters=self.counters,
            faults=self.faults,
            offload=surroundings.offload,
            chance=surroundings.chance,
            verify_new=_verify_new if config.verify_new else None,
        )
        calls = StoreCalls(self.accounts, self.datastores, self.collect_garbage)
        management = Management(
            config.version,
            self.accounts,
            calls,
            counters=self.counters,
            faults=self.faults,
            datastores=self.datastores,
        )
        self._tools = ConnectionTools(
            accounts=self.accounts,
            admission=Admission(self.accounts, self.datastores, session_tools),
            manage=management.answer,
            session_tools=session_tools,
            sessions=self._sessions,
            fill=self.fill,
            refusal_delay_s=config.refusal_delay_s,
        )

    @property
    def session_count(self) -> int:
        """How many upgraded connections there are."""
        return len(self._sessions)

    async def serve(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        around: Around | None = None,
    ) -> None:
        """Serve one client until it, or the script, ends the connection."""
        await Connection(reader, writer, self._tools, around=around).serve()

    def connect(self, *, around: Around | None = None) -> tuple[Streams, asyncio.Task[None]]:
        """A client's end of a connection in memory, and the task that serves it."""
        client, server = memory_streams()
        work = self.serve(*server, around=around)
        return client, asyncio.get_running_loop().create_task(work)

    def fill(self, free_bytes: int | None) -> None:
        """Have every datastore take so many bytes more; None for no limit."""
        for datastore in self.datastores.values():
            datastore.files.free_bytes = free_bytes

    def collect_garbage(self, datastore: Datastore, /) -> Collected:
        """Remove what no finished or running backup needs."""
        backups = [each for each in self._sessions if isinstance(each, BackupSession)]
        oldest_s = min((each.begun_s for each in backups), default=None)
        return collect_garbage(datastore, [each.named_digests() for each in backups], oldest_s)


class PbsListener:
    """A server on a socket with TLS.

    Attributes:
        fingerprint: of the certificate that connections see which begin now.
    """

    def __init__(self, pbs: FakePbs, certificate: Certificate) -> None:
        self.pbs = pbs
        self.fingerprint: Fingerprint = certificate.fingerprint
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.use_certificate(certificate)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; returns the port. Raises: OSError."""
        self._server = await asyncio.start_server(
            self._accept, host, port, ssl=self._context, ssl_handshake_timeout=_TLS_START_S
        )
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    def use_certificate(self, certificate: Certificate) -> None:
        """Show another certificate to everybody who connects from now on."""
        certificate.load_into(self._context)
        self.fingerprint = certificate.fingerprint

    async def close(self) -> None:
        """Stop listening and end all connections; unfinished backups are removed."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self.pbs.serve(reader, writer)
        except asyncio.CancelledError:
            # Only `close` cancels, and asyncio would report a cancelled client as an error.
            writer.transport.abort()
        finally:
            self._tasks.discard(task)


def _verify_new(datastore: Datastore, place: Place, backup: BackupRef) -> None:
    verify_locked(datastore, place, backup)
