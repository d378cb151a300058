"""A backup server in a simulated world, and the storage of the node that stands for it.

Owns its life (up, dead, started anew), what operators do there, and what a checker wants to know:
which backups are final and what each restores to. Requests are `vzsim.fakepbs`'s, faults of single
ones `vzsim.faults.pbs`'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from vzdump_qemu.errors import PbsError, PbsUnreachable
from vzdump_qemu.formats.pbs import (
    BackupGroup,
    BackupRef,
    BackupType,
    BlobDecoder,
    CryptMode,
    DataBlob,
    EncryptionKey,
    FixedIndex,
    Namespace,
    Repository,
    VerifyState,
    bare_key_file,
    check_signature,
    disk_of_index,
    encode_key_file,
)
from vzdump_qemu.formats.pbs.manifest import Verification
from vzdump_qemu.formats.pbs.repository import AuthId
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.secret import Secret
from vzsim.fakepbs import Account, Datastore, FakePbs, PbsConfig, PbsSurroundings, Place
from vzsim.fakepbs.connection import Around
from vzsim.fakepbs.streams import Streams
from vzsim.fakepbs.uploads import hold
from vzsim.fakepbs.verification import make_upid
from vzsim.fakeqmp.disks import DiskContent, MemoryDisk
from vzsim.world.clock import EPOCH_S
from vzsim.world.files import SimulatedFiles
from vzsim.world.server_rest import ServerRest

STORAGE_ID = "pbs1"
KEY_PATH = f"/etc/pve/priv/storage/{STORAGE_ID}.enc"
_STORE = "tank"
_AUTH_ID = "backup@pbs!node1"


class SimulatedBackupServer(FakePbs):
    """A `FakePbs` that may die, and is there again later.

    Args:
        secret: of the token that the node has.
        vmid: whose backups are looked at.
    """

    def __init__(self, stream: random.Random, *, secret: str, vmid: int) -> None:
        self._secret = secret
        self._chance = stream.randbytes
        self._account = Account(auth_id=_AUTH_ID, secret=secret)
        super().__init__(
            PbsConfig(datastores=(_STORE,), accounts=(self._account,)),
            PbsSurroundings(
                now_s=lambda: EPOCH_S + asyncio.get_running_loop().time(), chance=stream.randbytes
            ),
        )
        # All there ever were; backups are made with the one that was the last then.
        self._keys = [EncryptionKey(stream.randbytes(32))]
        self._place = Place(
            namespace=Namespace(),
            group=BackupGroup(backup_type=BackupType.VM, backup_id=str(vmid)),
        )
        self._clients: list[asyncio.WriteTransport] = []
        self._serving: set[asyncio.Task[None]] = set()
        self._is_up = True
        self._is_encrypted = False

    @property
    def _datastore(self) -> Datastore:
        return self.datastores[_STORE]

    def target(self, files: SimulatedFiles, *, is_encrypted: bool) -> PbsTarget:
        """The storage of a node; its key, if any, lies among the node's files."""
        self._is_encrypted = is_encrypted
        if is_encrypted:
            self.write_key(files, self._keys[-1])
        return PbsTarget(
            storage_id=STORAGE_ID,
            repository=Repository(
                datastore=_STORE, host="pbs.example", auth_id=AuthId.parse(_AUTH_ID)
            ),
            password=Secret(self._secret),
            key_path=KEY_PATH if is_encrypted else "",
        )

    def change_key(self, files: SimulatedFiles) -> None:
        """The operator has made another key; nothing to do where there is none."""
        if not self._is_encrypted:
            return
        self._keys.append(EncryptionKey(self._chance(32)))
        self.write_key(files, self._keys[-1])

    def lose_key(self, files: SimulatedFiles) -> None:
        """Somebody has removed the key's file, if there is one."""
        if KEY_PATH in files.files:
            files.unlink(KEY_PATH)
            files.settle()

    def write_key(self, files: SimulatedFiles, key: EncryptionKey) -> None:
        """Put the key's file where the storage has it."""
        key_file = bare_key_file(key, created_s=EPOCH_S, modified_s=EPOCH_S)
        files.make_directories(KEY_PATH.rpartition("/")[0])
        if KEY_PATH in files.files:
            files.unlink(KEY_PATH)
        files.create(KEY_PATH)
        files.append(KEY_PATH, encode_key_file(key_file))
        files.settle()

    # -- life ----------------------------------------------------------------------------------

    def connect(self, *, around: Around | None = None) -> tuple[Streams, asyncio.Task[None]]:
        """As `FakePbs`. Raises: PbsUnreachable while it is dead."""
        if not self._is_up:
            raise PbsUnreachable("unable to connect to pbs.example:8007 - Connection refused")
        client, task = super().connect(around=around)
        self._clients = [each for each in self._clients if not each.is_closing()]
        self._clients.append(client[1].transport)
        # A loop holds tasks only weakly.
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        return client, task

    def die(self, length_s: float) -> None:
        """Be gone at once, and started anew after that time."""
        self._is_up = False
        for transport in self._clients:
            transport.abort()
        self._clients.clear()
        asyncio.get_running_loop().call_later(length_s, self._start)

    def _start(self) -> None:
        self._is_up = True

    def heal(self, files: SimulatedFiles) -> None:
        """It is up, knows the node and has room; the node has its key."""
        if self._is_encrypted:
            self.write_key(files, self._keys[-1])
        self._start()
        self.accounts.add(self._account)
        self.fill(None)

    # -- what operators do ---------------------------------------------------------------------

    def revoke(self) -> None:
        """Forget the node's token."""
        self.accounts.revoke(_AUTH_ID)

    def prune_previous(self) -> None:
        """Remove the newest final backup."""
        if final := self._final():
            self._datastore.remove_backup(self._place, final[-1])

    def fail_previous(self) -> None:
        """Find the newest final backup damaged."""
        if final := self._final():
            upid = make_upid("verify_snapshot", int(self._datastore.now_s()))
            verification = Verification(state=VerifyState.FAILED, upid=upid)
            self._datastore.mark_verified(self._place, final[-1], verification)

    # -- what is there -------------------------------------------------------------------------

    def marks(self) -> dict[str, str]:
        """Of every final backup, see `ServerRest`."""
        return {backup.path: self._mark(backup) for backup in self._final()}

    def look(self, known: Mapping[str, str]) -> ServerRest:
        """Everything that is there; backups that are known by their mark are not restored."""
        marks = self.marks()
        disks: dict[str, Mapping[str, DiskContent]] = {}
        damaged: dict[str, str] = {}
        for backup in self._final():
            if backup.path in known:
                continue
            try:
                disks[backup.path] = self._restore(backup, self._key_of(backup))
            except (OSError, PbsError) as error:
                damaged[backup.path] = str(error)
        every = {backup.path for backup in self._datastore.backups(self._place)}
        return ServerRest(
            marks=marks,
            disks=disks,
            damaged=damaged,
            unfinished=tuple(sorted(every - marks.keys())),
        )

    def _final(self) -> list[BackupRef]:
        found = [
            backup
            for backup in self._datastore.backups(self._place)
            if self._datastore.is_finished(self._place, backup)
        ]
        return sorted(found, key=lambda backup: backup.backup_time_s)

    def _mark(self, backup: BackupRef) -> str:
        state = hashlib.sha256()
        manifest = self._datastore.manifest(self._place, backup)
        # What the server itself notes there may change.
        state.update(repr(replace(manifest, unprotected=type(manifest.unprotected)())).encode())
        for entry in manifest.entries:
            state.update(self._datastore.read_file(self._place, backup, entry.file_name))
        return state.hexdigest()

    def _key_of(self, backup: BackupRef) -> EncryptionKey | None:
        """The key that a backup was signed with. Raises: PbsError if it is none of ours."""
        if not self._is_encrypted:
            return None
        manifest = self._datastore.manifest(self._place, backup)
        named = manifest.unprotected.key_fingerprint
        for key in self._keys:
            if key.fingerprint == named and check_signature(manifest, key):
                return key
        raise PbsError("not signed with a key of the node")

    def _restore(self, backup: BackupRef, key: EncryptionKey | None) -> dict[str, DiskContent]:
        decoder = BlobDecoder(key=key)
        disks = {}
        for entry in self._datastore.manifest(self._place, backup).entries:
            raw = self._datastore.read_file(self._place, backup, entry.file_name)
            device_id = disk_of_index(entry.file_name)
            if device_id is None:
                continue
            index = FixedIndex.decode(raw)
            entry.check(size_bytes=index.geometry.size_bytes, csum=index.index_csum())
            disk = MemoryDisk()
            disk.resize(index.geometry.size_bytes)
            for chunk_index, digest in enumerate(index):
                content = _read_chunk(
                    decoder,
                    self._datastore.chunks.read(digest),
                    digest=digest,
                    content_bytes=index.geometry.chunk_length_bytes(chunk_index),
                    crypt_mode=entry.crypt_mode,
                )
                disk.write(chunk_index * index.geometry.chunk_bytes, content)
            disks[device_id] = disk.content()
        return disks


def _read_chunk(
    decoder: BlobDecoder,
    encoded: bytes,
    *,
    digest: bytes,
    content_bytes: int,
    crypt_mode: CryptMode,
) -> bytes:
    """As `BlobDecoder.decode_chunk`, which need not look where the server just did."""
    with suppress(PbsError):
        parsed = DataBlob.parse(encoded)
        if not (parsed.kind.is_encrypted or crypt_mode.is_encrypted):
            parsed.check_crc()
            held = hold(encoded)
            if held.digest == digest and len(held.content) == content_bytes:
                return held.content
    return bytes(
        decoder.decode_chunk(
            encoded, digest=digest, content_bytes=content_bytes, crypt_mode=crypt_mode
        )
    )
