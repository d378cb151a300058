"""What is written, what is refused, and that nothing unproved is written."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.stores.pbs.running_server import back_up, backup_at, running_server
from vzdump_qemu.errors import PbsCorrupt, PbsError, PbsKeyError, TargetError
from vzdump_qemu.formats.pbs import (
    BlobEncoder,
    CryptMode,
    EncryptionKey,
    Namespace,
    encode_manifest,
)
from vzdump_qemu.stores.pbs import BackupKey, BackupReader, PbsEndpoint
from vzsim.fakepbs import Place

MIB = 1 << 20
CHUNK = 4 * MIB
INDEX = "drive-scsi0.img.fidx"
KEY = EncryptionKey(bytes(range(32)))
DISK = random.Random(5).randbytes(CHUNK) + bytes(2 * CHUNK) + bytes(512)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "target"
    path.write_bytes(b"\xff" * len(DISK))
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


async def open_backup(endpoint: PbsEndpoint, key: EncryptionKey | None = None) -> BackupReader:
    return await BackupReader.open(endpoint, Namespace(), backup_at(0), key=key)


async def test_zeroes_are_written_unless_the_target_has_them(target: int) -> None:
    async with running_server() as server:
        await back_up(server.endpoint(), 0, [DISK])
        reader = await open_backup(server.endpoint())
        seen: list[int] = []
        proof = await reader.restore_disk(INDEX, target, is_zeroed=False, on_progress=seen.append)
        assert os.pread(target, len(DISK) + 1, 0) == DISK
        assert (proof.chunk_count, proof.zero_count, proof.fetched_count) == (4, 2, 2)
        assert sum(seen) == len(DISK)
        os.pwrite(target, b"kept", CHUNK)
        await reader.restore_disk(INDEX, target, is_zeroed=True)
        assert os.pread(target, 4, CHUNK) == b"kept"
        await reader.close()
        # One chunk of noise and the short end; the zero chunk is never fetched.
        assert server.pbs.counters.sent_chunk_count == 4


async def test_encrypted_backup_is_told_without_key_and_refused_with_another() -> None:
    async with running_server() as server:
        await back_up(server.endpoint(), 0, [DISK], key=BackupKey(key=KEY))
        reader = await open_backup(server.endpoint())
        with pytest.raises(PbsKeyError, match="missing key"):
            await reader.verify_disk(INDEX)
        with pytest.raises(PbsKeyError, match="missing key"):
            await reader.read_blob("qemu-server.conf.blob")
        await reader.close()
        with pytest.raises(PbsKeyError, match="wrong key"):
            await open_backup(server.endpoint(), EncryptionKey(bytes(32)))


async def test_signed_backup_is_readable_without_its_key() -> None:
    async with running_server() as server:
        key = BackupKey(key=KEY, mode=CryptMode.SIGN_ONLY)
        await back_up(server.endpoint(), 0, [DISK], key=key)
        reader = await open_backup(server.endpoint())
        await reader.verify_disk(INDEX)
        await reader.close()


async def test_target_that_cannot_be_written_ends_the_restore(tmp_path: Path) -> None:
    path = tmp_path / "read-only"
    path.write_bytes(b"")
    fd = os.open(path, os.O_RDONLY)
    try:
        async with running_server() as server:
            await back_up(server.endpoint(), 0, [DISK])
            reader = await open_backup(server.endpoint())
            with pytest.raises(TargetError, match="unable to write at byte"):
                await reader.restore_disk(INDEX, fd, is_zeroed=True)
            await reader.close()
    finally:
        os.close(fd)


async def test_files_that_were_exchanged_on_the_server_are_refused(target: int) -> None:
    async with running_server() as server:
        endpoint = server.endpoint()
        await back_up(endpoint, 0, [DISK], key=BackupKey(key=KEY, mode=CryptMode.SIGN_ONLY))
        store = server.pbs.datastores["tank"]
        place = Place(namespace=Namespace(), group=backup_at(0).backup_group)
        directory = place.backup_path(backup_at(0))
        store.files.write(f"{directory}/fw.conf.blob", BlobEncoder().encode(b"x").to_bytes())
        index = bytearray(store.read_file(place, backup_at(0), INDEX))
        index[4096:4128] = index[4128:4160]
        store.files.write(f"{directory}/{INDEX}", bytes(index))
        reader = await open_backup(endpoint, KEY)
        with pytest.raises(PbsCorrupt, match="wrong size for file"):
            await reader.read_blob("fw.conf.blob")
        with pytest.raises(PbsCorrupt, match="wrong checksum for file"):
            await reader.restore_disk(INDEX, target, is_zeroed=False)
        assert os.pread(target, len(DISK), 0) == b"\xff" * len(DISK)
        for file_name in ("absent.blob", INDEX, "../x.blob"):
            with pytest.raises(PbsError):
                await reader.read_blob(file_name)
        await reader.close()


async def test_manifest_that_was_changed_has_a_wrong_signature() -> None:
    async with running_server() as server:
        endpoint = server.endpoint()
        await back_up(endpoint, 0, [DISK], key=BackupKey(key=KEY))
        store = server.pbs.datastores["tank"]
        place = Place(namespace=Namespace(), group=backup_at(0).backup_group)
        manifest = store.manifest(place, backup_at(0))
        changed = replace(manifest, entries=manifest.entries[1:])
        encoded = BlobEncoder().encode(encode_manifest(changed)).to_bytes()
        store.files.write(f"{place.backup_path(backup_at(0))}/index.json.blob", encoded)
        with pytest.raises(PbsCorrupt, match="wrong signature in manifest"):
            await open_backup(endpoint, KEY)
