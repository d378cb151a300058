"""Verification, garbage collection, and chunks that are there already."""

from __future__ import annotations

import random

import pytest

from tests.vzsim.fakepbs.conftest import HandClock
from tests.vzsim.fakepbs.raw_client import (
    CHUNK_BYTES,
    TIME_S,
    api,
    ask,
    backup_target,
    make_backup,
    session,
    upload_chunk,
)
from vzdump_qemu.formats.pbs import BlobEncoder, EncryptionKey, VerifyState, chunk_digest
from vzsim.fakepbs import Datastore, FakePbs, MemoryFiles, PbsConfig, PbsSurroundings, Place
from vzsim.fakepbs.requests import ApiError
from vzsim.fakepbs.verification import verify_backup

DISK = b"\1" * CHUNK_BYTES + b"end"
END_DIGEST = chunk_digest(b"end")
DISK_PATH = "vm/100/2023-11-14T22:13:20Z/drive-scsi0.img.fidx"


def only_place(pbs: FakePbs) -> tuple[Datastore, Place]:
    datastore = pbs.datastores["tank"]
    (namespace,) = datastore.namespaces()
    (place,) = datastore.places(namespace)
    return datastore, place


def verify(pbs: FakePbs) -> list[str]:
    datastore, place = only_place(pbs)
    return verify_backup(datastore, place, place.backup(TIME_S))


def state(pbs: FakePbs) -> VerifyState | None:
    datastore, place = only_place(pbs)
    found = datastore.manifest(place, place.backup(TIME_S)).unprotected.verification
    return None if found is None else found.state


async def test_whole_backup_is_verified_and_told(pbs: FakePbs) -> None:
    await make_backup(pbs, DISK)
    target = backup_target("admin/datastore/tank/verify").replace("store=tank&", "")
    answer = await ask(pbs, "POST", target)
    assert answer.value.startswith("UPID:")
    assert state(pbs) is VerifyState.OK
    (listed,) = (await ask(pbs, "GET", api("admin/datastore/tank/snapshots"))).value
    assert listed["verification"] == {"state": "ok", "upid": answer.value}


async def test_damaged_chunk_fails_and_is_set_aside_and_healed_by_an_upload(pbs: FakePbs) -> None:
    await make_backup(pbs, DISK)
    datastore, _ = only_place(pbs)
    right = datastore.chunks.read(END_DIGEST)
    datastore.chunks.replace(END_DIGEST, right[:-1] + b"?")
    (wrong,) = verify(pbs)
    assert wrong.endswith("Data blob has wrong CRC checksum.")
    assert state(pbs) is VerifyState.FAILED
    path = f".chunks/{END_DIGEST.hex()[:4]}"
    assert datastore.files.names(path) == [f"{END_DIGEST.hex()}.0.bad"]
    async with session(pbs, backup_time=TIME_S + 1) as opened:
        await opened.call("POST", "fixed_index", archive_name="a.fidx", size=3)
        await upload_chunk(opened, 1, b"end")
    assert verify(pbs) == []
    assert state(pbs) is VerifyState.OK


async def test_lost_chunk_and_wrong_content_fail(pbs: FakePbs) -> None:
    await make_backup(pbs, DISK)
    datastore, _ = only_place(pbs)
    datastore.chunks.replace(END_DIGEST, BlobEncoder().encode(b"End").to_bytes())
    assert verify(pbs)[0].endswith("detected chunk with wrong digest.")
    assert "reading file" in verify(pbs)[0]


async def test_chunk_of_another_length_or_encrypted_fails(pbs: FakePbs) -> None:
    await make_backup(pbs, DISK)
    datastore, _ = only_place(pbs)
    datastore.chunks.replace(END_DIGEST, BlobEncoder().encode(b"e").to_bytes())
    assert verify(pbs)[0].endswith("detected chunk with wrong length (3 != 1)")
    key = EncryptionKey(bytes(32))
    encoded = BlobEncoder(key=key).encode(b"end", iv=bytes(16)).to_bytes()
    datastore.chunks.replace(END_DIGEST, encoded)
    assert verify(pbs)[0].endswith("Index and chunk CryptMode don't match.")


async def test_index_and_blob_unlike_the_manifest_fail(pbs: FakePbs) -> None:
    await make_backup(pbs, DISK)
    datastore, _ = only_place(pbs)
    raw = datastore.files.read(DISK_PATH)
    datastore.files.write(DISK_PATH, raw[:-1] + b"?")
    blob_path = DISK_PATH.replace("drive-scsi0.img.fidx", "qemu-server.conf.blob")
    datastore.files.write(blob_path, BlobEncoder().encode(b"other").to_bytes())
    wrong = verify(pbs)
    assert len(wrong) == 2
    assert wrong[0].partition(": ")[2].startswith("wrong size for file 'qemu-server.conf.blob'")
    assert wrong[1].endswith("wrong index checksum")


async def test_new_backups_are_verified_at_once_if_the_server_is_set_so(clock: HandClock) -> None:
    surroundings = PbsSurroundings(now_s=clock, chance=random.Random(1).randbytes)
    pbs = FakePbs(PbsConfig(verify_new=True), surroundings)
    await make_backup(pbs, DISK)
    assert state(pbs) is VerifyState.OK


async def test_garbage_is_what_nobody_named_for_a_day(pbs: FakePbs, clock: HandClock) -> None:
    await make_backup(pbs, DISK)
    async with session(pbs, backup_time=TIME_S + 1) as opened:
        await opened.call("POST", "fixed_index", archive_name="a.fidx", size=3)
        await upload_chunk(opened, 1, b"new")
    datastore, _ = only_place(pbs)
    clock.now_s += 3600
    early = pbs.collect_garbage(datastore)
    assert (early.removed_count, early.pending_count, early.kept_count) == (0, 1, 2)
    clock.now_s += 86400
    late = pbs.collect_garbage(datastore)
    assert (late.removed_count, late.pending_count, late.kept_count) == (1, 0, 2)
    assert set(datastore.chunks.digests()) == {chunk_digest(DISK[:CHUNK_BYTES]), END_DIGEST}


async def test_garbage_collection_spares_what_a_running_backup_uploaded(
    pbs: FakePbs, clock: HandClock
) -> None:
    async with session(pbs) as opened:
        await opened.call("POST", "fixed_index", archive_name="a.fidx", size=3)
        await upload_chunk(opened, 1, b"new")
        clock.now_s += 3 * 86400
        datastore, _ = only_place(pbs)
        assert pbs.collect_garbage(datastore).removed_count == 0
    assert (await ask(pbs, "POST", api("admin/datastore/tank/gc"))).value.startswith("UPID:")
    assert list(datastore.chunks.digests()) == []


def store(clock: HandClock) -> Datastore:
    return Datastore("tank", MemoryFiles(clock), clock)


def encrypted(content: bytes) -> bytes:
    encoder = BlobEncoder(key=EncryptionKey(bytes(32)), compress=False)
    return encoder.encode(content, iv=bytes(16)).to_bytes()


def test_same_chunk_twice_is_a_duplicate_and_counts_as_used(clock: HandClock) -> None:
    chunks = store(clock).chunks
    encoded = BlobEncoder().encode(b"a").to_bytes()
    assert not chunks.insert(b"d" * 32, encoded).is_duplicate
    clock.now_s += 100
    assert chunks.insert(b"d" * 32, encoded).is_duplicate
    collected = chunks.collect(used_before_s=clock.now_s, marked_since_s=clock.now_s)
    assert collected.kept_count == 1


def test_smaller_of_two_plain_encodings_is_kept(clock: HandClock) -> None:
    chunks = store(clock).chunks
    content = bytes(1000)
    small = BlobEncoder().encode(content).to_bytes()
    large = BlobEncoder(compress=False).encode(content).to_bytes()
    for encoded in (large, small, large):
        chunks.insert(b"d" * 32, encoded)
    assert chunks.read(b"d" * 32) == small


def test_empty_file_in_the_place_of_a_chunk_is_overwritten(clock: HandClock) -> None:
    chunks = store(clock).chunks
    chunks.replace(b"d" * 32, b"")
    encoded = BlobEncoder().encode(b"a").to_bytes()
    assert not chunks.insert(b"d" * 32, encoded).is_duplicate
    assert chunks.read(b"d" * 32) == encoded


def test_encrypted_chunk_replaces_neither_a_plain_nor_another_encrypted_one(
    clock: HandClock,
) -> None:
    chunks = store(clock).chunks
    chunks.insert(b"d" * 32, BlobEncoder().encode(b"a").to_bytes())
    with pytest.raises(ApiError) as caught:
        chunks.insert(b"d" * 32, encrypted(b"a"))
    assert caught.value.text == (
        f"Overwriting unencrypted chunk '{'64' * 32}' on store 'tank' with encrypted chunk "
        "with same digest not allowed!"
    )
    chunks.insert(b"e" * 32, encrypted(b"a"))
    with pytest.raises(ApiError, match="Overwriting existing"):
        chunks.insert(b"e" * 32, encrypted(b"ab"))
