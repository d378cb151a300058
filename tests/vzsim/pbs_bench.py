"""A machine and a backup server in memory and virtual time, for tests of backups to servers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import pytest

from vzdump_qemu.errors import QmpCommandError
from vzdump_qemu.formats.pbs import (
    BackupGroup,
    BackupRef,
    BackupType,
    BlobDecoder,
    DataBlob,
    EncryptionKey,
    FixedIndex,
    Manifest,
    Namespace,
    bare_key_file,
    check_signature,
    encode_key_file,
)
from vzsim.fakepbs import (
    DEFAULT_TOKEN,
    Datastore,
    FakePbs,
    Fault,
    PbsConfig,
    PbsSurroundings,
    Place,
)
from vzsim.fakeqmp.disks import MemoryDisk
from vzsim.fakeqmp.machine import Machine, MachineConfig, ProcessEnd
from vzsim.fakeqmp.memory import MemoryHost
from vzsim.fakeqmp.script import Script
from vzsim.kernel import run_simulated
from vzsim.pbs_client import memory_library
from vzsim.world.channels import OneClient, open_qmp
from vzsim.world.clock import EPOCH_S, SimulatedClock
from vzsim.world.machine import LoopTimebase

CHUNK = 4 << 20
REPOSITORY = f"{DEFAULT_TOKEN.auth_id}@pbs.example:tank"
CONFIG = b"scsi0: local:vm-100-disk-0\n"
RAW_KEY = bytes(range(32))
FIRST_S = EPOCH_S
GROUP = BackupGroup(backup_type=BackupType.VM, backup_id="100")
_STEP_S = 0.01
_PLACE = Place(namespace=Namespace(), group=GROUP)

_T = TypeVar("_T")


def in_simulation(main: Coroutine[Any, Any, _T]) -> _T:
    """Run to the end in virtual time."""
    return run_simulated(main)


def key_file(raw: bytes = RAW_KEY) -> bytes:
    """A key file without a passphrase."""
    return encode_key_file(bare_key_file(EncryptionKey(raw), created_s=1, modified_s=1))


class PbsBench:
    """Disks of chunks that differ, a server with one datastore, and one client of the monitor."""

    def __init__(
        self,
        *script: Fault,
        chunk_counts: Sequence[int] = (4,),
        rules: Script | None = None,
        **config: Any,
    ) -> None:
        stream = random.Random(7)
        self.pbs = FakePbs(
            PbsConfig(refusal_delay_s=0.0, **config),
            PbsSurroundings(
                now_s=lambda: EPOCH_S + asyncio.get_running_loop().time(), chance=stream.randbytes
            ),
            script,
        )
        self.host = MemoryHost()
        self.host.files |= {"/conf": CONFIG, "/fw": b"[OPTIONS]\n"}
        self.ends: list[ProcessEnd] = []
        self.library = memory_library(
            self.pbs, clock=SimulatedClock(), chance=random.Random(8).randbytes
        )
        self.machine = Machine(
            MachineConfig(no_shutdown=True),
            script=rules or Script(),
            timebase=LoopTimebase(),
            host=self.host,
            on_end=self.ends.append,
            load_pbs_library=lambda: self.library,
        )
        self.disks: list[MemoryDisk] = []
        for index, count in enumerate(chunk_counts):
            disk = MemoryDisk(size_bytes=count * CHUNK)
            for chunk in range(count):
                disk.write(chunk * CHUNK, stream.randbytes(64))
            self.disks.append(disk)
            self.machine.block.add_disk(f"drive-scsi{index}", disk)
        self.monitor = self.machine.add_monitor()
        self.said: list[dict[str, Any]] = []
        listening = self.machine.add_monitor()
        listening.connect_in_memory(self.said.append, lambda: None)
        listening.take({"execute": "qmp_capabilities"})
        self._turn = OneClient()
        self.backup_count = 0
        self.given = {
            "format": "pbs",
            "backup_file": REPOSITORY,
            "password": DEFAULT_TOKEN.secret,
            "backup_id": "100",
        }

    async def ask(self, name: str, **arguments: Any) -> Any:
        """One command; its reply. Raises: QmpCommandError."""
        given = {key.replace("_", "-"): value for key, value in arguments.items()}
        connection = open_qmp(self.monitor, self._turn, timeout_s=5.0, duplicate_fd=lambda fd: fd)
        async with connection as qmp:
            return await qmp.execute(name, given, timeout_s=200.0)

    async def begin(self, **arguments: Any) -> Any:
        """``backup`` to the server, an hour after the one before."""
        time_s = FIRST_S + 3600 * self.backup_count
        self.backup_count += 1
        given = {"backup_time": time_s, "config_file": "/conf", **self.given, **arguments}
        left_out = {name for name, value in given.items() if value is None}
        return await self.ask("backup", **{n: v for n, v in given.items() if n not in left_out})

    async def end(self) -> dict[str, Any]:
        """Wait until the backup has ended; its figures."""
        return await self.until(lambda status: status.get("status") != "active")

    async def until(
        self, is_so: Callable[[dict[str, Any]], bool], *, poll_s: float = _STEP_S
    ) -> dict[str, Any]:
        """Ask for the figures until they are so."""
        for _ in range(10_000):
            status: dict[str, Any] = await self.ask("query-backup")
            if is_so(status):
                return status
            await asyncio.sleep(poll_s)
        raise AssertionError(f"never came: {status}")

    async def back_up(self, **arguments: Any) -> dict[str, Any]:
        """A whole backup; its figures at the end."""
        await self.begin(**arguments)
        return await self.end()

    async def refusal(self, **arguments: Any) -> str:
        """Text of the error with which ``backup`` is answered."""
        with pytest.raises(QmpCommandError) as caught:
            await self.begin(**arguments)
        return caught.value.description

    @property
    def events(self) -> list[str]:
        """Names of the events so far, and the states that jobs entered."""
        found = [message for message in self.said if "event" in message]
        return [message["data"].get("status") or message["event"] for message in found]

    async def bitmap_actions(self) -> list[str]:
        """What ``query-pbs-bitmap-info`` says of each disk."""
        return [info["action"] for info in await self.ask("query-pbs-bitmap-info")]

    def write(self, offset_bytes: int, data: bytes, *, disk_index: int = 0) -> list[int]:
        """A write of the guest; the list gets its errno when it is done."""
        done: list[int] = []
        self.machine.guest_write(f"drive-scsi{disk_index}", offset_bytes, data, done.append)
        return done

    async def backup_times(self, namespace: Namespace = Namespace()) -> list[int]:  # noqa: B008
        """Numbers of the backups that the server keeps, finished or not, once it is at rest."""
        while self.pbs.session_count:
            await asyncio.sleep(_STEP_S)
        found = self._datastore.backups(Place(namespace=namespace, group=GROUP))
        return sorted((backup.backup_time_s - FIRST_S) // 3600 for backup in found)

    def manifest(self, number: int, *, key: EncryptionKey | None = None) -> Manifest:
        """Manifest of the backup of that number, with its signature proved if there is a key."""
        manifest = self._datastore.manifest(_PLACE, _backup(number))
        if key is not None:
            assert check_signature(manifest, key)
        return manifest

    def file(self, number: int, name: str, *, key: EncryptionKey | None = None) -> bytes:
        """Content of a file of a backup that is no index, proved against the manifest."""
        entry = self.manifest(number, key=key).entry(name)
        encoded = DataBlob.parse(self._datastore.read_file(_PLACE, _backup(number), name))
        entry.check(size_bytes=encoded.encoded_bytes, csum=encoded.csum())
        return bytes(BlobDecoder(key=key).decode(encoded))

    def disk(self, number: int, *, disk_index: int = 0, key: EncryptionKey | None = None) -> bytes:
        """Content of a disk in a backup, every chunk proved."""
        name = f"drive-scsi{disk_index}.img.fidx"
        entry = self.manifest(number, key=key).entry(name)
        index = FixedIndex.decode(self._datastore.read_file(_PLACE, _backup(number), name))
        entry.check(size_bytes=index.geometry.size_bytes, csum=index.index_csum())
        decoder, content = BlobDecoder(key=key), []
        for chunk_index, digest in enumerate(index):
            chunk = decoder.decode_chunk(
                self._datastore.chunks.read(digest),
                digest=digest,
                content_bytes=index.geometry.chunk_length_bytes(chunk_index),
                crypt_mode=entry.crypt_mode,
            )
            content.append(bytes(chunk))
        return b"".join(content)

    @property
    def _datastore(self) -> Datastore:
        return self.pbs.datastores["tank"]


def _backup(number: int) -> BackupRef:
    return BackupRef(backup_group=GROUP, backup_time_s=FIRST_S + 3600 * number)
