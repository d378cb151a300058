"""Lists, notes, protection, pruning and logs against the simulator's server."""

from __future__ import annotations

import pytest

from tests.stores.pbs.running_server import GROUP, back_up, backup_at, running_server
from vzdump_qemu.errors import PbsError, PbsRefused
from vzdump_qemu.formats.pbs import BlobDecoder, EncryptionKey, Namespace
from vzdump_qemu.stores.pbs import BackupKey, DatastoreCalls, KeepCounts, ReaderSession
from vzsim.fakepbs import DEFAULT_USER

DISK = bytes(range(256)) * 64
KEY = EncryptionKey(bytes(range(32)))


@pytest.mark.parametrize("namespace", [Namespace(), Namespace.parse("a/b")], ids=str)
async def test_backup_is_listed_noted_protected_and_pruned(namespace: Namespace) -> None:
    async with running_server() as server:
        server.pbs.datastores["tank"].make_namespace(namespace)
        endpoint = server.endpoint(DEFAULT_USER)
        calls = DatastoreCalls(endpoint, namespace)
        assert await calls.list_backups() == []
        key = BackupKey(key=KEY)
        for number in range(3):
            await back_up(endpoint, number, [DISK], namespace=namespace, key=key)
        listed = await calls.list_backups(GROUP)
        assert [one.backup for one in listed] == [backup_at(number) for number in range(3)]
        assert listed[0].key_fingerprint == KEY.fingerprint
        assert {one.file_name for one in listed[0].files} >= {
            "drive-scsi0.img.fidx", "qemu-server.conf.blob", "index.json.blob",
        }  # fmt: skip
        assert listed[0].size_bytes
        assert listed[0].owner == DEFAULT_USER.auth_id
        await calls.write_notes(backup_at(0), "first line\nsecond, with ümlaut")
        assert await calls.read_notes(backup_at(0)) == "first line\nsecond, with ümlaut"
        await calls.set_protected(backup_at(0), is_protected=True)
        pruned = await calls.prune(GROUP, KeepCounts(last=1), is_dry_run=True)
        assert {one.backup: one.is_kept for one in pruned}[backup_at(1)] is False
        assert len(await calls.list_backups()) == 3
        await calls.prune(GROUP, KeepCounts(last=1))
        left = await calls.list_backups()
        assert [one.backup for one in left] == [backup_at(0), backup_at(2)]
        assert [one.is_protected for one in left] == [True, False]
        assert left[0].notes == "first line"
        await calls.forget(backup_at(2))
        assert [one.backup for one in await calls.list_backups()] == [backup_at(0)]


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
async def test_log_is_stored_once(key: EncryptionKey | None) -> None:
    async with running_server() as server:
        endpoint = server.endpoint()
        calls = DatastoreCalls(endpoint, Namespace())
        await back_up(endpoint, 0, [DISK])
        await calls.upload_log(backup_at(0), b"INFO: done\n", key=key)
        with pytest.raises(PbsRefused, match="already contains a log"):
            await calls.upload_log(backup_at(0), b"again")
        reader = await ReaderSession.open(endpoint, Namespace(), backup_at(0))
        encoded = await reader.download("client.log.blob")
        assert await reader.speed_test() == b"A" * (1 << 20)
        await reader.close()
        assert BlobDecoder(key=key).decode(encoded) == b"INFO: done\n"


async def test_version_and_room_are_told() -> None:
    async with running_server() as server:
        calls = DatastoreCalls(server.endpoint(), Namespace())
        assert await calls.version() == "4.2.3"
        status = await calls.status()
        assert status.total_bytes >= status.available_bytes >= 0


async def test_backup_that_is_not_there_is_told_in_the_words_of_the_server() -> None:
    async with running_server() as server:
        calls = DatastoreCalls(server.endpoint(), Namespace())
        with pytest.raises(PbsRefused) as caught:
            await calls.read_notes(backup_at(0))
        assert caught.value.message


def test_pruning_without_a_rule_is_refused() -> None:
    for counts in ({}, {"last": 0}):
        with pytest.raises(PbsError, match="at least one count"):
            KeepCounts(**counts)
