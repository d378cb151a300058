"""One restore: what happens on a connection behind the upgrade to the reader protocol.

Owns the endpoints and which chunks the connection may fetch. What must hold before the upgrade is
in `admission`. Source: PBS formats, section 5.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from vzdump_qemu.errors import PbsError
from vzdump_qemu.formats.pbs.names import BackupRef
from vzdump_qemu.units import MIB
from vzsim.fakepbs.backup_session import SessionTools, chunks_of_index
from vzsim.fakepbs.datastore import Datastore, Place
from vzsim.fakepbs.locks import Lock
from vzsim.fakepbs.parameters import DIGEST, FILE_NAME, Parameter, check_parameters
from vzsim.fakepbs.requests import ApiError, Reply, Request, file_reply

_SPEED_TEST: Final = b"A" * MIB


class ReaderSession:
    """A backup that is being read.

    Args:
        lock: shared; nobody may remove the backup meanwhile.
    """

    def __init__(
        self,
        datastore: Datastore,
        place: Place,
        backup: BackupRef,
        *,
        lock: Lock,
        tools: SessionTools,
    ) -> None:
        self._datastore = datastore
        self._place = place
        self._backup = backup
        self._lock = lock
        self._tools = tools
        self._allowed: set[bytes] = set()
        self.endpoints: dict[str, Callable[[Request], Awaitable[Reply]]] = {
            "GET /chunk": self._send_chunk,
            "GET /download": self._send_file,
            "GET /speedtest": self._send_anything,
        }

    def end(self) -> None:
        """The connection is gone."""
        self._lock.release()

    async def _send_file(self, request: Request) -> Reply:
        schema = (Parameter("file-name", FILE_NAME),)
        name = check_parameters(request, schema)["file-name"]
        try:
            raw = self._datastore.read_file(self._place, self._backup, name)
        except OSError as error:
            path = f"{self._datastore.root}/{self._place.backup_path(self._backup)}/{name}"
            raise ApiError(f'open file "{path}" failed - not found', status=404) from error
        try:
            self._allowed.update(chunks_of_index(name, raw))
        except PbsError as error:
            raise ApiError(error.message) from error
        return file_reply(raw)

    async def _send_chunk(self, request: Request) -> Reply:
        text = check_parameters(request, (Parameter("digest", DIGEST),))["digest"]
        digest = bytes.fromhex(text)
        if digest not in self._allowed:
            raise ApiError(
                f"download chunk {text} not allowed", status=401, is_about_credentials=True
            )
        encoded = self._datastore.chunks.read(digest)
        self._tools.counters.sent_chunk_count += 1
        self._tools.counters.sent_chunk_bytes += len(encoded)
        return file_reply(encoded)

    async def _send_anything(self, request: Request) -> Reply:
        check_parameters(request, ())
        return file_reply(_SPEED_TEST)
