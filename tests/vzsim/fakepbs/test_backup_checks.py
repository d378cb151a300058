"""Every check of the backup endpoints, with the words of its refusal."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import pytest

from tests.vzsim.fakepbs.raw_client import (
    CHUNK_BYTES,
    TIME_S,
    RawSession,
    append,
    make_backup,
    session,
    upload_chunk,
    upload_data_blob,
    upload_disk,
    upload_manifest,
)
from vzdump_qemu.formats.pbs import (
    BlobEncoder,
    EncryptionKey,
    FixedIndex,
    Verification,
    VerifyState,
    chunk_digest,
)
from vzsim.fakepbs import Datastore, FakePbs, Place

ONES = b"\1" * CHUNK_BYTES
END = b"end"
DISK_NAME = "drive-scsi0.img.fidx"


@pytest.fixture
async def opened(pbs: FakePbs) -> AsyncIterator[RawSession]:
    """A backup in the making, of a disk of one chunk and three bytes, writer 1."""
    async with session(pbs) as raw:
        answer = await raw.call(
            "POST", "fixed_index", archive_name=DISK_NAME, size=CHUNK_BYTES + len(END)
        )
        assert answer.value == 1
        yield raw


def only_place(pbs: FakePbs) -> tuple[Datastore, Place]:
    datastore = pbs.datastores["tank"]
    (namespace,) = datastore.namespaces()
    (place,) = datastore.places(namespace)
    return datastore, place


async def close(opened: RawSession, *, count: int, size: int, csum: bytes, wid: int = 1) -> str:
    answer = await opened.call(
        "POST", "fixed_close", wid=wid, chunk_count=count, size=size, csum=csum.hex()
    )
    return answer.text


# -- chunks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({"encoded_size": 20}, "uploaded chunk is larger than announced."),
        ({"encoded_size": 5000}, "uploaded chunk has unexpected size."),
        ({"digest": "ab" * 32}, "detected chunk with wrong digest."),
        ({"size": 7}, f"detected chunk with wrong length (7 != {CHUNK_BYTES})"),
        ({"wid": 2}, "fixed writer '2' not registered"),
    ],
)
async def test_chunk_announced_wrongly_is_refused(
    opened: RawSession, told: dict[str, object], text: str
) -> None:
    encoded = BlobEncoder().encode(ONES).to_bytes()
    values: dict[str, object] = {
        "wid": 1, "size": CHUNK_BYTES, "digest": chunk_digest(ONES).hex(),
        "encoded_size": len(encoded), **told,
    }  # fmt: skip
    answer = await opened.call("POST", "fixed_chunk", body=encoded, **values)
    assert (answer.status, answer.text) == (400, text)


async def test_chunk_that_is_no_blob_is_refused(opened: RawSession) -> None:
    answer = await opened.call(
        "POST", "fixed_chunk", body=bytes(20), wid=1, size=8, digest="ab" * 32, encoded_size=20
    )
    assert (answer.status, answer.text) == (400, "unable to parse raw blob - wrong magic")


async def test_chunk_over_four_mebibytes_is_refused(opened: RawSession) -> None:
    answer = await upload_chunk(opened, 1, ONES + b"x")
    assert answer.text == (
        f"fixed writer '{DISK_NAME}' - got large chunk ({CHUNK_BYTES + 1} > {CHUNK_BYTES}"
    )


async def test_second_end_chunk_of_a_writer_is_refused_even_as_a_retry(opened: RawSession) -> None:
    assert (await upload_chunk(opened, 1, END)).status == 200
    text = "fixed writer '1' - detected multiple end chunks (chunk size too small)"
    assert (await upload_chunk(opened, 1, END)).text == text


async def test_chunk_with_wrong_sum_is_taken_and_stored_with_the_right_one(
    pbs: FakePbs, opened: RawSession
) -> None:
    right = BlobEncoder().encode(END).to_bytes()
    wrong = right[:8] + b"\0\0\0\0" + right[12:]
    digest = chunk_digest(END)
    answer = await opened.call(
        "POST", "fixed_chunk", body=wrong, wid=1, size=3, digest=digest.hex(),
        encoded_size=len(wrong),
    )  # fmt: skip
    assert answer.value == digest.hex()
    assert pbs.datastores["tank"].chunks.read(digest) == right


async def test_encrypted_chunk_is_taken_unseen(opened: RawSession) -> None:
    key = EncryptionKey(bytes(range(32)))
    encoded = BlobEncoder(key=key).encode(END, iv=bytes(16)).to_bytes()
    answer = await opened.call(
        "POST", "fixed_chunk", body=encoded, wid=1, size=3, digest="ab" * 32,
        encoded_size=len(encoded),
    )  # fmt: skip
    assert answer.value == "ab" * 32


async def test_upper_case_digest_is_refused(opened: RawSession) -> None:
    answer = await opened.call(
        "POST", "fixed_chunk", body=bytes(20), wid=1, size=8, digest="AB" * 32, encoded_size=20
    )
    text = "parameter verification failed - 'digest': value does not match the regex pattern"
    assert (answer.status, answer.text) == (400, text)


# -- appending and closing --------------------------------------------------------------------


async def test_digest_that_was_never_uploaded_cannot_be_appended(opened: RawSession) -> None:
    answer = await append(opened, 1, [b"\7" * 32], [0])
    assert (answer.status, answer.text) == (400, f"no such chunk {'07' * 32}")


async def test_chunk_in_the_store_but_of_another_connection_cannot_be_appended(
    pbs: FakePbs,
) -> None:
    await make_backup(pbs, ONES)
    async with session(pbs, backup_time=TIME_S + 1) as opened:
        await opened.call("POST", "fixed_index", archive_name=DISK_NAME, size=CHUNK_BYTES)
        answer = await append(opened, 1, [chunk_digest(ONES)], [0])
        assert answer.text == f"no such chunk {chunk_digest(ONES).hex()}"


async def test_lists_of_different_length_are_refused(opened: RawSession) -> None:
    await upload_chunk(opened, 1, ONES)
    answer = await append(opened, 1, [chunk_digest(ONES)], [0, CHUNK_BYTES])
    assert answer.text == "offset list has wrong length (1 != 2)"


@pytest.mark.parametrize(
    ("content", "offset_bytes", "text"),
    [
        (ONES, 512, f"chunk data exceeds size ({CHUNK_BYTES + 512} >= {CHUNK_BYTES + 3})"),
        (ONES, 3, "got unaligned chunk (pos = 3)"),
        (END, 0, f"chunk with unexpected length (3 != {CHUNK_BYTES}"),
    ],
)
async def test_chunk_that_does_not_fit_its_place_is_refused(
    opened: RawSession, content: bytes, offset_bytes: int, text: str
) -> None:
    await upload_chunk(opened, 1, content)
    answer = await append(opened, 1, [chunk_digest(content)], [offset_bytes])
    assert (answer.status, answer.text) == (400, text)


async def test_chunks_in_any_order_make_a_whole_index(pbs: FakePbs, opened: RawSession) -> None:
    for content in (END, ONES):
        await upload_chunk(opened, 1, content)
    digests = [chunk_digest(END), chunk_digest(ONES)]
    assert (await append(opened, 1, digests, [CHUNK_BYTES, 0])).value is None
    csum = hashlib.sha256(digests[1] + digests[0]).digest()
    assert await close(opened, count=2, size=CHUNK_BYTES + 3, csum=csum) == '{"data": null}'
    datastore, place = only_place(pbs)
    raw = datastore.read_file(place, place.backup(TIME_S), DISK_NAME)
    assert list(FixedIndex.decode(raw)) == digests[::-1]


@pytest.mark.parametrize(
    ("count", "size", "csum", "text"),
    [
        (2, CHUNK_BYTES + 3, None, "received wrong number of chunk (1 != 2)"),
        (1, CHUNK_BYTES + 3, None, "unexpected chunk count (2 != 1)"),
    ],
)
async def test_index_that_is_not_whole_cannot_be_closed(
    opened: RawSession, count: int, size: int, csum: bytes | None, text: str
) -> None:
    await upload_chunk(opened, 1, ONES)
    await append(opened, 1, [chunk_digest(ONES)], [0])
    told = await close(opened, count=count, size=size, csum=csum or bytes(32))
    assert told == f"fixed writer '{DISK_NAME}' close failed - {text}"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (CHUNK_BYTES, f"unexpected file size ({CHUNK_BYTES + 3} != {CHUNK_BYTES})"),
        (CHUNK_BYTES + 3, "got unexpected checksum"),
    ],
)
async def test_index_of_other_size_or_sum_cannot_be_closed(
    opened: RawSession, size: int, text: str
) -> None:
    for content, offset_bytes in ((ONES, 0), (END, CHUNK_BYTES)):
        await upload_chunk(opened, 1, content)
        await append(opened, 1, [chunk_digest(content)], [offset_bytes])
    told = await close(opened, count=2, size=size, csum=bytes(32))
    assert told == f"fixed writer '{DISK_NAME}' close failed - {text}"
    assert await close(opened, count=2, size=size, csum=bytes(32)) == (
        "fixed writer '1' not registered"
    )


async def test_index_without_a_size_grows_with_what_is_appended(pbs: FakePbs) -> None:
    async with session(pbs) as opened:
        await opened.call("POST", "fixed_index", archive_name=DISK_NAME)
        for content in (ONES, END):
            await upload_chunk(opened, 1, content)
        digests = [chunk_digest(ONES), chunk_digest(END)]
        assert (await append(opened, 1, digests, [0, CHUNK_BYTES])).status == 200
        csum = hashlib.sha256(b"".join(digests)).digest()
        assert await close(opened, count=2, size=CHUNK_BYTES + 3, csum=csum) == '{"data": null}'


async def test_index_with_wrong_extension_is_refused(opened: RawSession) -> None:
    answer = await opened.call("POST", "fixed_index", archive_name="disk.didx", size=1)
    assert answer.text == "wrong archive extension: 'disk.didx'"
    answer = await opened.call("POST", "dynamic_index", archive_name="disk.fidx")
    assert answer.text == "wrong archive extension: 'disk.fidx'"


# -- dynamic indexes --------------------------------------------------------------------------


async def upload_dynamic(opened: RawSession, content: bytes) -> str:
    encoded = BlobEncoder().encode(content).to_bytes()
    digest = chunk_digest(content).hex()
    answer = await opened.call(
        "POST", "dynamic_chunk", body=encoded, wid=1, size=len(content), digest=digest,
        encoded_size=len(encoded),
    )  # fmt: skip
    assert answer.value == digest
    return digest


async def test_dynamic_index_is_closed_with_the_sum_over_ends_and_digests(pbs: FakePbs) -> None:
    async with session(pbs) as opened:
        assert (await opened.call("POST", "dynamic_index", archive_name="root.didx")).value == 1
        digests = [await upload_dynamic(opened, content) for content in (b"one", b"three")]
        value = {"wid": 1, "digest-list": digests, "offset-list": [0, 3]}
        assert (await opened.send_json("PUT", "dynamic_index", value)).value is None
        parts = [(3).to_bytes(8, "little"), bytes.fromhex(digests[0])]
        parts += [(8).to_bytes(8, "little"), bytes.fromhex(digests[1])]
        csum = hashlib.sha256(b"".join(parts)).hexdigest()
        closed = await opened.call("POST", "dynamic_close", wid=1, chunk_count=2, size=8, csum=csum)
        assert closed.value is None


@pytest.mark.parametrize(
    ("count", "size", "text"),
    [
        (2, 3, "unexpected chunk count (1 != 2)"),
        (1, 4, "unexpected file size (3 != 4)"),
        (1, 3, "unexpected checksum "),
    ],
)
async def test_dynamic_index_unlike_what_is_told_cannot_be_closed(
    pbs: FakePbs, count: int, size: int, text: str
) -> None:
    async with session(pbs) as opened:
        await opened.call("POST", "dynamic_index", archive_name="root.didx")
        digest = await upload_dynamic(opened, b"one")
        value = {"wid": 1, "digest-list": [digest], "offset-list": [7]}
        strange = await opened.send_json("PUT", "dynamic_index", value)
        assert strange.text == (
            "dynamic writer 'root.didx' append chunk failed - got strange chunk offset (0 != 7)"
        )
        await opened.send_json("PUT", "dynamic_index", {**value, "offset-list": [0]})
        closed = await opened.call(
            "POST", "dynamic_close", wid=1, chunk_count=count, size=size, csum="00" * 32
        )
        assert closed.text.startswith(f"dynamic writer 'root.didx' close failed - {text}")


async def test_fixed_writer_is_none_of_the_dynamic_ones(opened: RawSession) -> None:
    value = {"wid": 1, "chunk-count": 1, "size": 1, "csum": "00" * 32}
    answer = await opened.send_json("POST", "dynamic_close", value)
    assert answer.text == "dynamic writer '1' not registered"


# -- blobs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told_bytes", "spoil", "text"),
    [
        ("a.conf", None, False, "wrong blob file extension: 'a.conf'"),
        ("a.blob", 19, False, "got blob with unexpected length (19 != 15)"),
        ("a.blob", None, True, "Data blob has wrong CRC checksum."),
    ],
)
async def test_blob_that_is_not_right_is_refused(
    opened: RawSession, name: str, told_bytes: int | None, spoil: bool, text: str
) -> None:
    encoded = BlobEncoder().encode(END).to_bytes()
    if spoil:
        encoded = encoded[:-1] + b"?"
    answer = await opened.call(
        "POST", "blob", body=encoded, file_name=name, encoded_size=told_bytes or len(encoded)
    )
    assert (answer.status, answer.text) == (400, text)


async def test_blob_of_the_same_name_replaces_the_first(pbs: FakePbs, opened: RawSession) -> None:
    for content in (b"first", b"second"):
        await upload_data_blob(opened, "a.blob", content)
    datastore, place = only_place(pbs)
    raw = datastore.read_file(place, place.backup(TIME_S), "a.blob")
    assert raw == BlobEncoder().encode(b"second").to_bytes()


# -- the previous backup ----------------------------------------------------------------------


async def test_first_backup_has_no_previous(opened: RawSession) -> None:
    answer = await opened.call("GET", "previous", archive_name=DISK_NAME)
    assert (answer.status, answer.text) == (400, "no valid previous backup")
    assert (await opened.call("GET", "previous_backup_time")).value is None


async def test_previous_index_makes_its_chunks_known(pbs: FakePbs) -> None:
    await make_backup(pbs, ONES + END)
    pbs.counters.reset()
    async with session(pbs, backup_time=TIME_S + 1) as opened:
        assert (await opened.call("GET", "previous_backup_time")).value == TIME_S
        answer = await opened.call("GET", "previous", archive_name=DISK_NAME)
        assert answer.headers["content-type"] == "application/octet-stream"
        index = FixedIndex.decode(answer.body)
        await opened.call("POST", "fixed_index", archive_name=DISK_NAME, size=CHUNK_BYTES + 3)
        answer = await append(opened, 1, list(index), [0, CHUNK_BYTES])
        assert answer.value is None
    assert pbs.counters.received_chunk_count == 0
    assert pbs.counters.reused_chunk_count == pbs.counters.appended_chunk_count == 2


async def test_previous_file_that_is_missing_is_told_apart_by_kind(pbs: FakePbs) -> None:
    await make_backup(pbs, ONES)
    path = "/datastore/tank/vm/100/2023-11-14T22:13:20Z"
    async with session(pbs, backup_time=TIME_S + 1) as opened:
        answer = await opened.call("GET", "previous", archive_name="no.blob")
        assert (answer.status, answer.text) == (
            404, f'open file "{path}/no.blob" failed - not found',
        )  # fmt: skip
        answer = await opened.call("GET", "previous", archive_name="no.fidx")
        assert answer.status == 400
        assert answer.text.startswith(f'Unable to open fixed index "{path}/no.fidx"')


async def test_previous_that_failed_its_verification_is_none(pbs: FakePbs) -> None:
    await make_backup(pbs, ONES)
    datastore, place = only_place(pbs)
    failed = Verification(state=VerifyState.FAILED, upid="UPID:x")
    datastore.mark_verified(place, place.backup(TIME_S), failed)
    async with session(pbs, backup_time=TIME_S + 1) as opened:
        answer = await opened.call("GET", "previous", archive_name="index.json.blob")
        assert answer.text == "no valid previous backup"


async def reuse(opened: RawSession, index_csum: bytes, **values: object) -> str:
    told = {"archive_name": DISK_NAME, "size": 2 * CHUNK_BYTES, **values}
    return (await opened.call("POST", "fixed_index", reuse_csum=index_csum.hex(), **told)).text


async def test_reused_index_takes_changes_alone(pbs: FakePbs) -> None:
    await make_backup(pbs, ONES + bytes(CHUNK_BYTES))
    old = [chunk_digest(ONES), chunk_digest(bytes(CHUNK_BYTES))]
    new = b"\2" * CHUNK_BYTES
    async with session(pbs, backup_time=TIME_S + 1) as opened:
        csum = hashlib.sha256(b"".join(old)).digest()
        assert await reuse(opened, csum) == '{"data": 1}'
        await upload_chunk(opened, 1, new)
        await append(opened, 1, [chunk_digest(new)], [0])
        digests = [chunk_digest(new), old[1]]
        csum = hashlib.sha256(b"".join(digests)).digest()
        assert await close(opened, count=1, size=1, csum=csum) == '{"data": null}'
        datastore, place = only_place(pbs)
        raw = datastore.read_file(place, place.backup(TIME_S + 1), DISK_NAME)
        assert list(FixedIndex.decode(raw)) == digests


async def test_reuse_without_a_fitting_previous_index_is_refused(pbs: FakePbs) -> None:
    async with session(pbs) as opened:
        text = "cannot reuse index - no valid previous backup exists"
        assert await reuse(opened, bytes(32)) == text
    await make_backup(pbs, ONES)
    csum = hashlib.sha256(chunk_digest(ONES)).digest()
    async with session(pbs, backup_time=TIME_S + 1) as opened:
        text = "cannot reuse index - no previous backup exists for archive"
        assert await reuse(opened, csum, archive_name="other.fidx") == text
        assert await reuse(opened, bytes(32)) == (
            f"expected csum ({'00' * 32}) doesn't match last backup's ({csum.hex()}), "
            "cannot do incremental backup"
        )
        text = "clone_data_from not allowed - index sizes not equal"
        assert await reuse(opened, csum) == text
        answer = await opened.call(
            "POST", "fixed_index", archive_name=DISK_NAME, reuse_csum=csum.hex()
        )
        assert answer.text == "size is required for incremental backups"


# -- the end ----------------------------------------------------------------------------------


async def test_finish_with_an_open_writer_is_refused(opened: RawSession) -> None:
    answer = await opened.call("POST", "finish")
    assert answer.text == "found open index writer - unable to finish backup"


async def test_finish_without_files_is_refused(pbs: FakePbs) -> None:
    async with session(pbs) as opened:
        answer = await opened.call("POST", "finish")
        assert answer.text == "backup does not contain valid files (file count == 0)"


async def test_finish_without_a_manifest_is_refused(pbs: FakePbs) -> None:
    async with session(pbs) as opened:
        await upload_data_blob(opened, "a.blob", b"a")
        answer = await opened.call("POST", "finish")
        assert answer.status == 400
        assert answer.text.startswith("unable to update manifest blob - ")


async def test_finish_without_its_base_is_refused(pbs: FakePbs) -> None:
    await make_backup(pbs, ONES)
    datastore, place = only_place(pbs)
    async with session(pbs, backup_time=TIME_S + 1) as opened:
        disk = await upload_disk(opened, DISK_NAME, ONES)
        await upload_manifest(opened, [disk], TIME_S + 1)
        datastore.files.remove(place.backup_path(place.backup(TIME_S)))
        answer = await opened.call("POST", "finish")
        assert answer.text == (
            "base snapshot vm/100/2023-11-14T22:13:20Z was removed during backup, "
            "cannot finish as chunks might be missing"
        )


async def test_finished_backup_takes_nothing_more_and_has_upload_counts(pbs: FakePbs) -> None:
    async with session(pbs) as opened:
        disk = await upload_disk(opened, DISK_NAME, ONES + ONES)
        await upload_manifest(opened, [disk])
        assert (await opened.call("POST", "finish")).value is None
        for method, path in (("POST", "finish"), ("GET", "previous")):
            values = {"archive_name": "a.fidx"} if path == "previous" else {}
            answer = await opened.call(method, path, **values)
            assert answer.text == "backup already marked as finished."
    datastore, place = only_place(pbs)
    stats = datastore.manifest(place, place.backup(TIME_S)).unprotected.upload_stats
    assert stats is not None
    assert (stats.count, stats.size_bytes, stats.duplicate_count) == (1, CHUNK_BYTES, 0)


async def test_connection_that_ends_before_finish_takes_the_backup_with_it(pbs: FakePbs) -> None:
    async with session(pbs) as opened:
        await upload_disk(opened, DISK_NAME, ONES)
        datastore, place = only_place(pbs)
        assert datastore.backup_files(place, place.backup(TIME_S)) == [DISK_NAME]
    assert datastore.backups(place) == []
    assert list(datastore.chunks.digests()) == [chunk_digest(ONES)]
    assert datastore.locks.held_paths() == []


async def test_speed_test_takes_anything_and_unknown_paths_nothing(opened: RawSession) -> None:
    assert (await opened.call("POST", "speedtest", body=bytes(1 << 20))).value is None
    answer = await opened.call("POST", "speed")
    assert (answer.status, answer.text) == (404, "Path '/speed' not found.")
    names = [each["subdir"] for each in (await opened.call("GET", "")).value]
    assert {"blob", "fixed_index", "finish", "previous_backup_time"} <= set(names)


async def test_server_announces_frames_of_four_and_windows_of_32_mebibytes(
    opened: RawSession,
) -> None:
    await opened.call("GET", "")
    settings = opened.remote_settings
    assert (settings.max_frame_size, settings.initial_window_size) == (4 << 20, 32 << 20)
