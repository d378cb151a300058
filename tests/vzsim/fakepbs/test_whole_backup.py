"""Whole backups against the server, from the first byte to a restored disk."""

from __future__ import annotations

import hashlib

from tests.vzsim.fakepbs.raw_client import (
    CHUNK_BYTES,
    TIME_S,
    api,
    append,
    ask,
    make_backup,
    session,
    upload_data_blob,
    upload_manifest,
)
from vzdump_qemu.formats.pbs import (
    BackupRef,
    BlobDecoder,
    BlobEncoder,
    CryptMode,
    DynamicIndex,
    EncryptionKey,
    FixedIndex,
    Manifest,
    ManifestEntry,
    Namespace,
    check_signature,
    chunk_digest,
    encode_manifest,
    sign_manifest,
)
from vzsim.fakepbs import FakePbs, Fault, FaultKind
from vzsim.fakepbs.verification import verify_backup

DISK = bytes(CHUNK_BYTES) + b"\1" * CHUNK_BYTES + b"end" * 1000


async def read_disk(pbs: FakePbs, backup_time_s: int = TIME_S) -> bytes:
    """What a restore finds."""
    async with session(pbs, "reader", backup_time=backup_time_s) as opened:
        raw = (await opened.call("GET", "download", file_name="drive-scsi0.img.fidx")).body
        index = FixedIndex.decode(raw)
        found = []
        for digest in index:
            answer = await opened.call("GET", "chunk", digest=digest.hex())
            assert answer.status == 200, answer.text
            found.append(bytes(BlobDecoder().decode(answer.body)))
        return b"".join(found)


async def test_backup_finished_is_read_back_byte_by_byte(pbs: FakePbs) -> None:
    await make_backup(pbs, DISK)
    assert await read_disk(pbs) == DISK
    assert pbs.session_count == 0
    assert pbs.datastores["tank"].locks.held_paths() == []


async def make_dynamic(pbs: FakePbs, contents: list[bytes]) -> None:
    """A finished backup of one dynamic index, as file backups have."""
    async with session(pbs) as opened:
        await opened.call("POST", "dynamic_index", archive_name="root.didx")
        parts, offset = [], 0
        for content in contents:
            encoded = BlobEncoder().encode(content).to_bytes()
            digest = chunk_digest(content)
            await opened.call(
                "POST", "dynamic_chunk", body=encoded, wid=1, size=len(content),
                digest=digest.hex(), encoded_size=len(encoded),
            )  # fmt: skip
            value = {"wid": 1, "digest-list": [digest.hex()], "offset-list": [offset]}
            await opened.send_json("PUT", "dynamic_index", value)
            offset += len(content)
            parts.append(offset.to_bytes(8, "little") + digest)
        csum = hashlib.sha256(b"".join(parts)).digest()
        closed = await opened.call(
            "POST", "dynamic_close", wid=1, chunk_count=len(contents), size=offset, csum=csum.hex()
        )
        assert closed.value is None
        entry = ManifestEntry(file_name="root.didx", size_bytes=offset, csum=csum)
        await upload_manifest(opened, [entry])
        assert (await opened.call("POST", "finish")).value is None


async def test_dynamic_index_is_read_verified_and_reused_like_a_fixed_one(pbs: FakePbs) -> None:
    await make_dynamic(pbs, [b"one", b"three"])
    async with session(pbs, "reader") as opened:
        raw = (await opened.call("GET", "download", file_name="root.didx")).body
        digests = [entry.digest for entry in DynamicIndex.decode(raw)]
        answer = await opened.call("GET", "chunk", digest=digests[1].hex())
        assert BlobDecoder().decode(answer.body) == b"three"
    datastore = pbs.datastores["tank"]
    (place,) = datastore.places(Namespace())
    assert verify_backup(datastore, place, place.backup(TIME_S)) == []
    async with session(pbs, backup_time=TIME_S + 1) as opened:
        missing = await opened.call("GET", "previous", archive_name="no.didx")
        assert missing.text.startswith('Unable to open dynamic index "')
        await opened.call("GET", "previous", archive_name="root.didx")
        await opened.call("POST", "dynamic_index", archive_name="root.didx")
        value = {
            "wid": 1, "digest-list": [digest.hex() for digest in digests], "offset-list": [0, 3],
        }  # fmt: skip
        assert (await opened.send_json("PUT", "dynamic_index", value)).value is None


async def test_encrypted_backup_is_verified_by_its_sums_alone(pbs: FakePbs) -> None:
    key = EncryptionKey(bytes(range(32)))
    encoder = BlobEncoder(key=key)
    content = b"secret"
    async with session(pbs) as opened:
        await opened.call("POST", "fixed_index", archive_name="a.img.fidx", size=len(content))
        encoded = encoder.encode(content, iv=bytes(16)).to_bytes()
        digest = chunk_digest(content, key)
        await opened.call(
            "POST", "fixed_chunk", body=encoded, wid=1, size=len(content), digest=digest.hex(),
            encoded_size=len(encoded),
        )  # fmt: skip
        await append(opened, 1, [digest], [0])
        csum = hashlib.sha256(digest).digest()
        await opened.call(
            "POST", "fixed_close", wid=1, chunk_count=1, size=len(content), csum=csum.hex()
        )
        entry = ManifestEntry(
            file_name="a.img.fidx", size_bytes=len(content), csum=csum,
            crypt_mode=CryptMode.ENCRYPT,
        )  # fmt: skip
        backup = BackupRef.parse("vm/100/2023-11-14T22:13:20Z")
        manifest = sign_manifest(Manifest(backup=backup, entries=(entry,)), key)
        await upload_data_blob(opened, "index.json.blob", encode_manifest(manifest))
        assert (await opened.call("POST", "finish")).value is None
    datastore = pbs.datastores["tank"]
    (place,) = datastore.places(Namespace())
    assert verify_backup(datastore, place, backup) == []
    found = datastore.manifest(place, backup)
    assert check_signature(found, key)
    (listed,) = (await ask(pbs, "GET", api("admin/datastore/tank/snapshots"))).value
    assert listed["fingerprint"] == str(key.fingerprint)
    assert listed["files"][0]["crypt-mode"] == "encrypt"


async def test_two_readers_hold_the_backup_until_both_have_gone(pbs: FakePbs) -> None:
    await make_backup(pbs, DISK)
    locks = pbs.datastores["tank"].locks
    async with session(pbs, "reader"):
        async with session(pbs, "reader"):
            pass
        assert locks.held_paths() == ["vm/100/2023-11-14T22:13:20Z"]
    assert locks.held_paths() == []


async def test_damaged_index_is_no_base_and_cannot_be_restored(pbs: FakePbs) -> None:
    await make_backup(pbs, DISK)
    path = "vm/100/2023-11-14T22:13:20Z/drive-scsi0.img.fidx"
    pbs.datastores["tank"].files.write(path, b"short")
    async with session(pbs, "reader") as opened:
        answer = await opened.call("GET", "download", file_name="drive-scsi0.img.fidx")
        assert (answer.status, answer.text) == (400, "index too small (5)")
    async with session(pbs, backup_time=TIME_S + 1) as opened:
        answer = await opened.call("GET", "previous", archive_name="drive-scsi0.img.fidx")
        assert (answer.status, answer.text) == (400, "index too small (5)")
        answer = await opened.call(
            "POST", "fixed_index", archive_name="drive-scsi0.img.fidx", size=3,
            reuse_csum="00" * 32,
        )  # fmt: skip
        assert (answer.status, answer.text) == (400, "index too small (5)")


async def test_backup_under_way_is_listed_without_a_size(pbs: FakePbs) -> None:
    async with session(pbs) as opened:
        await upload_data_blob(opened, "a.blob", b"a")
        (listed,) = (await ask(pbs, "GET", api("admin/datastore/tank/snapshots"))).value
        assert listed["files"] == [{"filename": "a.blob"}]
        assert "size" not in listed


async def test_request_taken_back_while_it_hangs_leaves_the_connection(pbs: FakePbs) -> None:
    pbs.faults.add(Fault(kind=FaultKind.HANG, endpoint="GET /previous_backup_time"))
    async with session(pbs) as opened:
        stream_id = await opened.begin("GET", "previous_backup_time")
        await opened.call("GET", "")
        opened.reset(stream_id)
        assert (await opened.call("GET", "previous_backup_time")).value is None


async def test_client_that_says_goodbye_has_ended_its_backup(pbs: FakePbs) -> None:
    async with session(pbs) as opened:
        await upload_data_blob(opened, "a.blob", b"a")
        await opened.say_goodbye()
        assert pbs.datastores["tank"].files.names("vm/100") == ["owner"]
