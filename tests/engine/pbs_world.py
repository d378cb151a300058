"""A simulated node whose storage ``pbs1`` is a backup server, in memory and virtual time.

QEMU's library and the tool's own client are the real ones; both are connected to the same server.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from tests.engine.world import World, _open_no_disk
from vzdump_qemu import events
from vzdump_qemu.engine.batch import back_up_all
from vzdump_qemu.engine.context import EnginePorts, RunResult
from vzdump_qemu.formats.pbs import (
    BackupGroup,
    BackupRef,
    BackupType,
    BlobDecoder,
    DataBlob,
    EncryptionKey,
    FixedIndex,
    Manifest,
    Repository,
    decode_key_file,
    disk_of_index,
    unlock_key_file,
)
from vzdump_qemu.formats.pbs.repository import AuthId
from vzdump_qemu.pbs_ports import PbsUploads
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.plan.options import BackupOptions, TargetOptions
from vzdump_qemu.secret import Secret
from vzdump_qemu.stores.pbs.key_loading import BackupKey
from vzdump_qemu.stores.pbs.tls import Stream
from vzdump_qemu.stores.pbs.uploads import ClientUploads
from vzsim.fakepbs import (
    DEFAULT_TOKEN,
    Datastore,
    FakePbs,
    Fault,
    PbsConfig,
    PbsSurroundings,
    Place,
)
from vzsim.pbs_client import memory_library
from vzsim.world.clock import EPOCH_S, SimulatedClock

STORAGE_ID = "pbs1"
SECRET = DEFAULT_TOKEN.secret
TARGET = PbsTarget(
    storage_id=STORAGE_ID,
    repository=Repository(
        datastore="tank", host="pbs.example", auth_id=AuthId.parse(DEFAULT_TOKEN.auth_id)
    ),
    password=Secret(SECRET),
)
REPOSITORY = TARGET.repository.render()
_REST_STEP_COUNT_MAX = 1000
_GROUP = BackupGroup(backup_type=BackupType.VM, backup_id="100")


def _pbs_options() -> BackupOptions:
    return BackupOptions(target=TargetOptions(storage_id=STORAGE_ID))


@dataclass
class PbsWorld(World):
    """A `World` with a server.

    Attributes:
        faults: what goes wrong at the server.
        on_event: what happens as an event of that name is told.
        sent: arguments of every ``backup`` that QEMU was sent.
    """

    options: BackupOptions = field(default_factory=_pbs_options)
    target: PbsTarget = TARGET
    faults: tuple[Fault, ...] = ()
    uploads_class: type[ClientUploads] = ClientUploads
    on_event: Mapping[str, Callable[[PbsWorld], None]] = field(default_factory=dict)
    pbs: FakePbs = field(init=False, repr=False)
    sent: list[Mapping[str, Any]] = field(default_factory=list)

    _serving: set[asyncio.Task[None]] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        self.pbs = FakePbs(
            PbsConfig(refusal_delay_s=0.0),
            PbsSurroundings(
                now_s=lambda: EPOCH_S + asyncio.get_running_loop().time(),
                chance=random.Random(7).randbytes,
            ),
            self.faults,
        )
        self.load_pbs_library = lambda: memory_library(
            self.pbs, clock=SimulatedClock(), chance=random.Random(8).randbytes
        )

    def _build(self) -> None:
        super()._build()
        self.node.storages.servers[STORAGE_ID] = self.target

    def _log_commands(self) -> None:
        super()._log_commands()
        process = self.machine.process
        carry_out = process.carry_out

        def kept(monitor: Any, name: str, arguments: Any) -> Any:
            if name == "backup":
                self.sent.append(arguments)
            return carry_out(monitor, name, arguments)

        process.carry_out = kept  # type: ignore[method-assign]

    def _emit(self, event: events.Event) -> None:
        super()._emit(event)
        self.on_event.get(type(event).__name__, lambda _: None)(self)

    def revoke(self) -> None:
        """The server forgets everybody."""
        self.pbs.accounts.revoke(DEFAULT_TOKEN.auth_id)

    async def _open_stream(self) -> Stream:
        stream, task = self.pbs.connect()
        # A loop holds tasks only weakly.
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        return stream

    def uploads(self) -> PbsUploads:
        """The tool's own client."""
        return self.uploads_class(
            clock=self.clock,
            open_nbd=_open_no_disk,
            open_stream=self._open_stream,
            find_key=self._find_key,
        )

    async def _find_key(self, target: PbsTarget) -> BackupKey | None:
        """From the node's files, where QEMU finds it as well."""
        if not target.key_path:
            return None
        master_path = target.master_key_path
        return BackupKey(
            key=unlock_key_file(decode_key_file(self.files.read(target.key_path)), None),
            created_s=1,
            master_pem=self.files.read(master_path) if master_path else b"",
        )

    def engine_ports(self) -> EnginePorts:
        """As `World` says, with the server in reach."""
        return replace(super().engine_ports(), pbs=self.uploads())

    async def back_up(self) -> RunResult:
        """One job of this VM, as a part of a scene, in a second of its own."""
        await asyncio.sleep(1)
        batch = await back_up_all(self.ports, self.options, [100])
        assert batch.error is None, batch.error
        return batch.runs[0]

    def play(self, scene: Callable[[Self], Awaitable[None]]) -> None:
        """As `World` says; connections end before the world does."""

        async def whole(world: Self) -> None:
            await scene(world)
            if world.machine.run_state is not None:
                world.machine.process.backup.cancel()
            for _ in range(_REST_STEP_COUNT_MAX):
                await asyncio.sleep(1)
                if not (self.pbs.session_count or self._serving):
                    return
            raise AssertionError("a connection to the server never ends")

        super().play(whole)

    # -- what the server holds -----------------------------------------------------------------

    @property
    def _datastore(self) -> Datastore:
        return self.pbs.datastores["tank"]

    @property
    def _place(self) -> Place:
        return Place(namespace=self.target.namespace, group=_GROUP)

    def backups(self) -> list[BackupRef]:
        """All backups at the server, finished or not, oldest first."""
        found = self._datastore.backups(self._place)
        return sorted(found, key=lambda backup: backup.backup_time_s)

    def manifest(self, index: int = -1) -> Manifest:
        """Of the newest backup, or another."""
        return self._datastore.manifest(self._place, self.backups()[index])

    def blob(self, name: str, *, key: EncryptionKey | None = None) -> bytes:
        """A configuration of the newest backup."""
        encoded = self._datastore.read_file(self._place, self.backups()[-1], name)
        return bytes(BlobDecoder(key=key).decode(DataBlob.parse(encoded)))

    def stored_disks(self, *, key: EncryptionKey | None = None) -> dict[str, bytes]:
        """Every disk of the newest backup by device id, each chunk proved."""
        disks = {}
        for entry in self.manifest().entries:
            device_id = disk_of_index(entry.file_name)
            if device_id is None:
                continue
            raw = self._datastore.read_file(self._place, self.backups()[-1], entry.file_name)
            index = FixedIndex.decode(raw)
            entry.check(size_bytes=index.geometry.size_bytes, csum=index.index_csum())
            decoder = BlobDecoder(key=key)
            disks[device_id] = b"".join(
                bytes(
                    decoder.decode_chunk(
                        self._datastore.chunks.read(digest),
                        digest=digest,
                        content_bytes=index.geometry.chunk_length_bytes(chunk_index),
                        crypt_mode=entry.crypt_mode,
                    )
                )
                for chunk_index, digest in enumerate(index)
            )
        return disks

    def said(self) -> str:
        """Everything that was told, in one text."""
        return "\n".join(map(repr, self.told))

    def assert_no_secret_told(self, secret: str = SECRET) -> None:
        """In no event, argument vector or journal."""
        assert secret not in self.said()
        assert secret not in repr(self.commands.calls)
        assert secret not in repr(self.journals.journals)
        for path, file in self.files.files.items():
            assert secret not in path and secret.encode() not in bytes(self.files.read(path)), file

    def assert_stored(self, result: RunResult | None, *, key: EncryptionKey | None = None) -> None:
        """One more whole backup of the disks as they were at the point in time."""
        assert result is not None and result.error is None, result
        assert result.archive_path == self.backups()[-1].path
        expected = {name: bytes(content) for name, content in self.host.points_in_time.items()}
        assert self.stored_disks(key=key) == expected
        self.assert_nothing_left()
        self.assert_no_secret_told()

    def assert_refused(self, result: RunResult | None, text: str) -> None:
        """The run failed with that first cause, and the server holds nothing of it."""
        self.assert_failed_clean(result, text)
        assert self.backups() == []
        self.assert_no_secret_told()
