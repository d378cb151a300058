"""Backup, second backup, restore and verify against the simulator's server, byte for byte."""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.stores.pbs.running_server import (
    CONFIGS,
    back_up,
    backup_at,
    running_server,
)
from vzdump_qemu.formats.pbs import CryptMode, EncryptionKey, Namespace, unlock_key_file, unwrap_key
from vzdump_qemu.stores.pbs import BackupKey, BackupReader, PbsEndpoint
from vzsim.fakepbs import DEFAULT_TOKEN, DEFAULT_USER, Account, Fault, FaultKind

pytestmark = pytest.mark.slow

MIB = 1 << 20
CHUNK = 4 * MIB
RAW_KEY = bytes(range(32))


def make_disk(seed: int, size_bytes: int) -> bytes:
    """Noise, text and zeroes by chunk, with chunks that occur twice."""
    chance = random.Random(seed)
    noise = chance.randbytes(CHUNK)
    text = (b"%032d the quick brown fox " % seed) * (CHUNK // 58 + 1)
    parts = [noise, bytes(CHUNK), text[:CHUNK], noise, bytes(2 * CHUNK), chance.randbytes(CHUNK)]
    return (b"".join(parts) * (size_bytes // (7 * CHUNK) + 1))[:size_bytes]


def restore_to(path: Path, size_bytes: int) -> int:
    path.write_bytes(b"")
    with path.open("r+b") as target:
        target.truncate(size_bytes)
    return os.open(path, os.O_RDWR)


async def restored(
    endpoint: PbsEndpoint,
    number: int,
    disk_count: int,
    path: Path,
    *,
    key: EncryptionKey | None = None,
    namespace: Namespace = Namespace(),  # noqa: B008
) -> list[bytes]:
    reader = await BackupReader.open(endpoint, namespace, backup_at(number), key=key)
    found = []
    try:
        for name, content in CONFIGS:
            assert await reader.read_blob(f"{name}.blob") == content
        for index in range(disk_count):
            file_name = f"drive-scsi{index}.img.fidx"
            entry = reader.manifest.entry(file_name)
            fd = restore_to(path / f"{number}-{index}", entry.size_bytes)
            try:
                await reader.restore_disk(file_name, fd, is_zeroed=True)
                proof = await reader.verify_disk(file_name)
            finally:
                os.close(fd)
            assert proof.size_bytes == entry.size_bytes
            found.append((path / f"{number}-{index}").read_bytes())
    finally:
        await reader.close()
    return found


@dataclass(frozen=True)
class Case:
    mode: CryptMode = CryptMode.NONE
    compress: bool = True
    namespace: str = ""
    account: Account = DEFAULT_TOKEN
    sizes: tuple[int, ...] = (9 * CHUNK,)


CASES = {
    "plain": Case(compress=False),
    "compressed": Case(),
    "encrypted": Case(mode=CryptMode.ENCRYPT),
    "encrypted-uncompressed": Case(mode=CryptMode.ENCRYPT, compress=False),
    "signed": Case(mode=CryptMode.SIGN_ONLY),
    "namespace-password": Case(namespace="a/b", account=DEFAULT_USER),
    "odd-sizes": Case(sizes=(512, CHUNK, CHUNK + 512, 5 * CHUNK - 512, 9 * CHUNK + 3 * 512)),
    "odd-sizes-encrypted": Case(mode=CryptMode.ENCRYPT, sizes=(512, 2 * CHUNK + 512)),
    "no-disk": Case(sizes=()),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_two_backups_are_restored_as_they_were(case: Case, tmp_path: Path) -> None:
    key = None if case.mode is CryptMode.NONE else EncryptionKey(RAW_KEY)
    backup_key = None if key is None else BackupKey(key=key, mode=case.mode)
    namespace = Namespace.parse(case.namespace)
    first = [make_disk(index, size) for index, size in enumerate(case.sizes)]
    second = [bytes([1]) + content[1:] for content in first]
    async with running_server() as server:
        server.pbs.datastores["tank"].make_namespace(namespace)
        endpoint = server.endpoint(case.account)
        done, read_bytes, _ = await back_up(
            endpoint, 0, first, key=backup_key, namespace=namespace, compress=case.compress
        )
        assert read_bytes == sum(case.sizes)
        assert done.warnings == ()
        counters = server.pbs.counters
        assert counters.received_chunk_count == done.stats.chunk_count
        assert counters.received_chunk_bytes == done.stats.sent_bytes
        assert counters.duplicate_chunk_count == 0
        counters.reset()
        bases = [entry.csum for entry in done.manifest.entries if entry.file_name.endswith("fidx")]
        again, read_bytes, reasons = await back_up(
            endpoint,
            1,
            second,
            key=backup_key,
            namespace=namespace,
            compress=case.compress,
            bases=bases,
            changed=[[(0, 1)] for _ in second],
        )
        assert reasons == [""] * len(second)
        assert read_bytes == sum(min(size, CHUNK) for size in case.sizes)
        # Disks of one size begin with different noise, so each sends one chunk.
        assert counters.received_chunk_count == len(second)
        assert counters.appended_chunk_count == len(second)
        assert again.stats.unchanged_bytes == sum(max(0, size - CHUNK) for size in case.sizes)
        for number, disks in enumerate((first, second)):
            found = await restored(
                endpoint, number, len(disks), tmp_path, key=key, namespace=namespace
            )
            assert found == disks
        # The server learns of the end of a connection from the connection.
        async with asyncio.timeout(10):
            while server.pbs.session_count:
                await asyncio.sleep(0)


async def test_second_full_backup_sends_only_what_changed() -> None:
    first = make_disk(1, 30 * CHUNK + 512)
    second = first[: 2 * CHUNK] + b"changed" + first[2 * CHUNK + 7 :]
    async with running_server() as server:
        endpoint = server.endpoint()
        await back_up(endpoint, 0, [first])
        server.pbs.counters.reset()
        done, read_bytes, reasons = await back_up(endpoint, 1, [second])
        assert read_bytes == len(second)
        assert reasons == ["there is no set of changes"]
        # The short last chunk is known too.
        assert server.pbs.counters.received_chunk_count == done.stats.chunk_count == 1
        assert server.pbs.counters.appended_chunk_count == 31


async def test_master_key_opens_the_key_that_the_backup_was_made_with() -> None:
    master = rsa.generate_private_key(public_exponent=65537, key_size=4096)
    public = master.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    private = master.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    key = EncryptionKey(RAW_KEY)
    async with running_server() as server:
        endpoint = server.endpoint()
        backup_key = BackupKey(key=key, created_s=1700000000, master_pem=public)
        done, _, _ = await back_up(endpoint, 0, [make_disk(1, CHUNK)], key=backup_key)
        assert done.manifest.entries[-1].file_name == "rsa-encrypted.key.blob"
        reader = await BackupReader.open(endpoint, Namespace(), backup_at(0), key=key)
        wrapped = await reader.read_blob("rsa-encrypted.key.blob")
        await reader.close()
    assert unlock_key_file(unwrap_key(private, wrapped)) == key


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ("csum", "not the one that the set of changes begins at"),
        ("key", "does not match provided key"),
        ("mode", "a key is given now"),
        ("failed", "no valid previous backup"),
        ("size", "another size"),
    ],
)
async def test_base_that_cannot_be_trusted_ends_in_a_full_read(spoil: str, reason: str) -> None:
    first = make_disk(3, 6 * CHUNK)
    key = BackupKey(key=EncryptionKey(RAW_KEY))
    second_key: BackupKey | None = key
    first_key: BackupKey | None = key
    second = first
    async with running_server() as server:
        endpoint = server.endpoint()
        if spoil == "mode":
            first_key = None
        done, _, _ = await back_up(endpoint, 0, [first], key=first_key)
        base = done.manifest.entries[-1].csum
        if spoil == "csum":
            base = bytes(32)
        elif spoil == "key":
            second_key = replace(key, key=EncryptionKey(bytes(32)))
        elif spoil == "size":
            second = first + bytes(CHUNK)
        elif spoil == "failed":
            server.pbs.faults.add(Fault(kind=FaultKind.PREVIOUS_FAILED, count=0))
        _, read_bytes, reasons = await back_up(
            endpoint, 1, [second], key=second_key, bases=[base], changed=[[(0, 1)]]
        )
        assert reason in reasons[0]
        assert read_bytes == len(second)
