"""The calls about a datastore on HTTP/1.1."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.vzsim.fakepbs.raw_client import (
    TIME_S,
    TOKEN_HEADERS,
    Answer,
    api,
    ask,
    make_backup,
)
from vzdump_qemu.formats.pbs import BlobEncoder
from vzsim.fakepbs import Account, FakePbs

ONE: dict[str, object] = {"backup_type": "vm", "backup_id": "100", "backup_time": TIME_S}
GROUP: dict[str, object] = {"backup_type": "vm", "backup_id": "100"}
DAY_S = 86400


async def call(
    pbs: FakePbs,
    method: str,
    name: str,
    /,
    *,
    headers: dict[str, str] = TOKEN_HEADERS,
    body: bytes = b"",
    **values: object,
) -> Answer:
    target = api(f"admin/datastore/tank/{name}", **values)
    return await ask(pbs, method, target, headers=headers, body=body)


def limited(pbs: FakePbs, *privileges: str) -> dict[str, str]:
    account = Account(auth_id="eve@pbs!t", secret="s", privileges={"/": frozenset(privileges)})
    pbs.accounts.add(account)
    return {"Authorization": f"PBSAPIToken {account.auth_id}:s"}


async def test_lists_tell_what_a_backup_consists_of(pbs: FakePbs) -> None:
    await make_backup(pbs, b"disk")
    (found,) = (await call(pbs, "GET", "snapshots")).value
    files = {each["filename"]: each for each in found.pop("files")}
    assert found == {
        "backup-type": "vm", "backup-id": "100", "backup-time": TIME_S, "protected": False,
        "owner": "root@pam!vzdump", "size": sum(each["size"] for each in files.values()),
    }  # fmt: skip
    assert files["drive-scsi0.img.fidx"] == {
        "filename": "drive-scsi0.img.fidx", "crypt-mode": "none", "size": 4,
    }  # fmt: skip
    assert set(files) == {"drive-scsi0.img.fidx", "qemu-server.conf.blob", "index.json.blob"}
    (group,) = (await call(pbs, "GET", "groups")).value
    assert (group["backup-count"], group["last-backup"]) == (1, TIME_S)
    assert (await call(pbs, "GET", "files", **ONE)).value == list(files.values())


async def test_lists_are_cut_by_filter_and_namespace(pbs: FakePbs) -> None:
    await make_backup(pbs, b"disk")
    await call(pbs, "POST", "namespace", name="a")
    await make_backup(pbs, b"disk", ns="a")
    for values, count in (
        ({"backup_type": "ct"}, 0), ({"backup_id": "100"}, 1), ({"ns": "a"}, 1), ({}, 1),
    ):  # fmt: skip
        assert len((await call(pbs, "GET", "snapshots", **values)).value) == count
    assert (await call(pbs, "GET", "namespace")).value == [{"ns": ""}, {"ns": "a"}]
    assert (await call(pbs, "GET", "snapshots", ns="b")).status == 404
    answer = await call(pbs, "POST", "namespace", name="a")
    assert answer.text == "namespace 'a' already exists"


async def test_notes_are_kept_in_the_manifest(pbs: FakePbs) -> None:
    await make_backup(pbs, b"disk")
    assert (await call(pbs, "GET", "notes", **ONE)).value == ""
    assert (await call(pbs, "PUT", "notes", **ONE, notes="web 1\nmore")).value is None
    assert (await call(pbs, "GET", "notes", **ONE)).value == "web 1\nmore"
    assert (await call(pbs, "GET", "snapshots")).value[0]["comment"] == "web 1"
    assert (await call(pbs, "PUT", "group-notes", **GROUP, notes="all")).value is None
    assert (await call(pbs, "GET", "group-notes", **GROUP)).value == "all"
    assert (await call(pbs, "GET", "groups")).value[0]["comment"] == "all"


async def test_protected_backup_is_removed_by_nobody(pbs: FakePbs) -> None:
    await make_backup(pbs, b"disk")
    assert (await call(pbs, "PUT", "protected", **ONE, protected=1)).value is None
    assert (await call(pbs, "GET", "protected", **ONE)).value is True
    for name, values in (("snapshots", ONE), ("groups", GROUP)):
        answer = await call(pbs, "DELETE", name, **values)
        assert (answer.status, answer.text) == (400, "cannot remove protected snapshot")
    assert (await call(pbs, "PUT", "protected", **ONE, protected="no")).value is None
    assert (await call(pbs, "DELETE", "groups", **GROUP)).value is None
    assert (await call(pbs, "GET", "groups")).value == []


async def test_backup_that_is_absent_is_told_by_every_call(pbs: FakePbs) -> None:
    text = "snapshot tank:vm/100/2023-11-14T22:13:20Z does not exist."
    for method, name, values in (
        ("DELETE", "snapshots", {}),
        ("GET", "notes", {}),
        ("PUT", "notes", {"notes": "x"}),
        ("GET", "protected", {}),
        ("PUT", "protected", {"protected": 1}),
        ("GET", "files", {}),
        ("GET", "download", {"file_name": "a.blob"}),
        ("POST", "upload-backup-log", {}),
        ("POST", "verify", {}),
    ):
        answer = await call(pbs, method, name, **ONE, **values)
        assert (answer.status, answer.text) == (400, text), name


async def test_client_log_is_taken_once(pbs: FakePbs) -> None:
    await make_backup(pbs, b"disk")
    encoded = BlobEncoder().encode(b"INFO: done\n").to_bytes()
    headers = {**TOKEN_HEADERS, "Content-Type": "application/octet-stream"}
    damaged = await call(
        pbs, "POST", "upload-backup-log", headers=headers, body=encoded[:-1] + b"?", **ONE
    )
    assert damaged.text == "Data blob has wrong CRC checksum."
    for text in ('{"data": null}', "backup already contains a log."):
        answer = await call(pbs, "POST", "upload-backup-log", headers=headers, body=encoded, **ONE)
        assert answer.text == text
    answer = await call(pbs, "GET", "download", **ONE, file_name="client.log.blob")
    assert answer.body == encoded
    missing = await call(pbs, "GET", "download", **ONE, file_name="no.blob")
    assert missing.status == 404


async def prune(pbs: FakePbs, **values: object) -> list[tuple[int, bool]]:
    body = {name.replace("_", "-"): value for name, value in {**GROUP, **values}.items()}
    headers = {**TOKEN_HEADERS, "Content-Type": "application/json"}
    answer = await call(pbs, "POST", "prune", headers=headers, body=json.dumps(body).encode())
    told: list[dict[str, Any]] = answer.value
    return [((each["backup-time"] - TIME_S) // DAY_S, each["keep"]) for each in told]


async def test_prune_removes_what_no_rule_keeps(pbs: FakePbs) -> None:
    for day in range(4):
        await make_backup(pbs, b"disk", backup_time_s=TIME_S + day * DAY_S)
    await call(pbs, "PUT", "protected", **ONE, protected=1)
    marks = [(0, True), (1, False), (2, True), (3, True)]
    assert await prune(pbs, keep_last=2, dry_run=True) == marks
    assert len((await call(pbs, "GET", "snapshots")).value) == 4
    assert await prune(pbs, keep_last=2) == marks
    times = [each["backup-time"] for each in (await call(pbs, "GET", "snapshots")).value]
    assert times == [TIME_S, TIME_S + 2 * DAY_S, TIME_S + 3 * DAY_S]
    assert await prune(pbs) == [(0, True), (2, True), (3, True)]


async def test_status_tells_what_is_left_on_the_disk(pbs: FakePbs) -> None:
    await make_backup(pbs, b"disk")
    pbs.fill(1000)
    value = (await call(pbs, "GET", "status")).value
    assert value["avail"] == 1000
    assert value["total"] == value["used"] + 1000 > 1000


async def test_datastores_are_listed_where_there_is_a_privilege(pbs: FakePbs) -> None:
    target = api("admin/datastore")
    assert [each["store"] for each in (await ask(pbs, "GET", target)).value] == ["tank"]
    assert (await ask(pbs, "GET", target, headers=limited(pbs))).value == []


@pytest.mark.parametrize(
    ("method", "name", "values"),
    [
        ("PUT", "notes", {**ONE, "notes": "x"}),
        ("PUT", "protected", {**ONE, "protected": 1}),
        ("DELETE", "snapshots", ONE),
        ("DELETE", "groups", GROUP),
        ("POST", "prune", GROUP),
        ("POST", "gc", {}),
        ("POST", "namespace", {"name": "a"}),
        ("POST", "upload-backup-log", ONE),
        ("GET", "download", {**ONE, "file_name": "a.blob"}),
    ],
)
async def test_call_without_its_privilege_is_refused(
    pbs: FakePbs, method: str, name: str, values: dict[str, object]
) -> None:
    await make_backup(pbs, b"disk")
    answer = await call(pbs, method, name, headers=limited(pbs, "Datastore.Audit"), **values)
    assert (answer.status, answer.text) == (403, "permission check failed")


async def test_group_of_somebody_else_is_not_listed_and_not_touched(pbs: FakePbs) -> None:
    await make_backup(pbs, b"disk")
    headers = limited(pbs, "Datastore.Backup", "Datastore.Prune")
    assert (await call(pbs, "GET", "snapshots", headers=headers)).value == []
    answer = await call(pbs, "DELETE", "snapshots", headers=headers, **ONE)
    assert answer.text == "backup owner check failed (eve@pbs!t != root@pam!vzdump)"


async def test_unknown_datastore_and_call_are_told(pbs: FakePbs) -> None:
    answer = await ask(pbs, "GET", api("admin/datastore/nope/status"))
    assert (answer.status, answer.text) == (400, "no such datastore 'nope'")
    assert (await call(pbs, "GET", "colour")).status == 404
