"""What must hold before an upgrade, and in which words it is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.vzsim.fakepbs.conftest import HandClock
from tests.vzsim.fakepbs.raw_client import (
    BACKUP_PROTOCOL,
    READER_PROTOCOL,
    TIME_S,
    TOKEN_HEADERS,
    Answer,
    ask,
    backup_target,
    make_backup,
    session,
    upgrade,
)
from vzsim.fakepbs import Account, FakePbs, Fault, FaultKind, PbsConfig, PbsSurroundings

OWNER = "root@pam!vzdump"


def limited(pbs: FakePbs, auth_id: str, *privileges: str, path: str = "/") -> dict[str, str]:
    """Headers of a new account with these privileges."""
    pbs.accounts.add(Account(auth_id=auth_id, secret="s", privileges={path: frozenset(privileges)}))
    return {"Authorization": f"PBSAPIToken {auth_id}:s"}


async def refused(
    pbs: FakePbs,
    path: str = "backup",
    *,
    headers: dict[str, str] | None = None,
    protocol: str = "",
    **values: object,
) -> tuple[int, str]:
    """Status and text of an upgrade that is not granted."""
    streams, task = pbs.connect()
    session_count = pbs.session_count
    protocol = protocol or (BACKUP_PROTOCOL if path == "backup" else READER_PROTOCOL)
    target = backup_target(path, **values)
    answer = await upgrade(streams, target, protocol, headers or TOKEN_HEADERS)
    streams[1].close()
    await task
    assert answer.status != 101
    assert pbs.session_count == session_count
    return answer.status, answer.text


async def test_upgrade_without_credentials_is_refused(pbs: FakePbs) -> None:
    told = await refused(pbs, headers={"Authorization": f"PBSAPIToken={OWNER}:wrong"})
    assert told == (401, "authentication failed")


async def test_backup_without_the_privilege_is_refused_before_the_store_is_looked_for(
    pbs: FakePbs,
) -> None:
    headers = limited(pbs, "a@pbs!t", "Datastore.Read")
    assert await refused(pbs, headers=headers, store="nowhere") == (
        403, "missing permissions 'Datastore.Backup' on '/datastore/nowhere'",
    )  # fmt: skip
    assert await refused(pbs, headers=headers, ns="a/b") == (
        403, "missing permissions 'Datastore.Backup' on '/datastore/tank/a/b'",
    )  # fmt: skip
    assert await refused(pbs, store="nowhere") == (400, "no such datastore 'nowhere'")


async def test_upgrade_to_another_protocol_or_none_is_refused(pbs: FakePbs) -> None:
    assert await refused(pbs, protocol="h2c") == (400, "invalid protocol name")
    answer = await ask(pbs, "GET", backup_target())
    assert (answer.status, answer.text) == (400, "missing Upgrade header")


async def test_unknown_namespace_is_refused_and_a_made_one_is_not(pbs: FakePbs) -> None:
    assert await refused(pbs, ns="a/b") == (404, "namespace not found")
    made = await ask(pbs, "POST", "/api2/json/admin/datastore/tank/namespace?name=a")
    assert made.value == "a"
    async with session(pbs, ns="a"):
        assert pbs.datastores["tank"].files.facts("ns/a/vm/100") is not None


async def test_benchmark_is_for_its_own_group_and_leaves_nothing(pbs: FakePbs) -> None:
    assert await refused(pbs, benchmark="true") == (
        400, "benchmark flags is only allowed on 'host/benchmark'",
    )  # fmt: skip
    values: dict[str, Any] = {"backup_type": "host", "backup_id": "benchmark"}
    assert await refused(pbs, **values) == (
        400, "unable to run benchmark without --benchmark flags",
    )  # fmt: skip
    async with session(pbs, benchmark="1", **values) as opened:
        assert (await opened.call("POST", "finish")).value is None
    assert pbs.datastores["tank"].files.names("host/benchmark") == ["owner"]


async def test_second_backup_of_a_group_waits_for_the_end_of_the_first(pbs: FakePbs) -> None:
    async with session(pbs):
        status, text = await refused(pbs, backup_time=TIME_S + 1)
        assert status == 400
        assert "unable to acquire backup group lock" in text
        async with session(pbs, backup_id="101"):
            pass
    async with session(pbs, backup_time=TIME_S + 1):
        pass


async def test_old_server_has_its_own_words_for_a_group_in_use(clock: HandClock) -> None:
    surroundings = PbsSurroundings(now_s=clock, chance=bytes)
    pbs = FakePbs(PbsConfig(version="3.2.4", refusal_delay_s=0.0), surroundings)
    async with session(pbs) as opened:
        assert await refused(pbs, backup_time=TIME_S + 1) == (
            400,
            'unable to acquire lock on backup group directory "/datastore/tank/vm/100" - '
            "another backup is already running",
        )
        answer = await opened.call("POST", "fixed_index", archive_name="a.fidx")
        assert answer.text == (
            "parameter verification failed - 'size': parameter is missing and it is not optional."
        )
    status, text = await refused(pbs, no_cache=1)
    assert status == 400
    assert text.startswith("parameter verification failed - 'no-cache'")


async def test_group_of_somebody_else_is_refused_and_one_of_my_token_is_not(pbs: FakePbs) -> None:
    await make_backup(pbs, b"disk")
    headers = limited(pbs, "eve@pbs!t", "Datastore.Backup")
    assert await refused(pbs, headers=headers, backup_time=TIME_S + 1) == (
        400, f"backup owner check failed (eve@pbs!t != {OWNER})",
    )  # fmt: skip
    pbs.datastores["tank"].files.write("vm/100/owner", b"root@pam\n")
    told = await refused(pbs, backup_time=TIME_S + 1)
    assert told == (400, f"backup owner check failed ({OWNER} != root@pam)")


async def test_backup_that_is_not_newer_than_the_last_is_refused(pbs: FakePbs) -> None:
    await make_backup(pbs, b"disk")
    for backup_time_s in (TIME_S, TIME_S - 1):
        told = await refused(pbs, backup_time=backup_time_s)
        assert told == (400, "backup timestamp is older than last backup.")
    assert pbs.datastores["tank"].locks.held_paths() == []


async def test_directory_that_is_there_already_is_refused(pbs: FakePbs) -> None:
    pbs.datastores["tank"].files.make_directory("vm/100/2023-11-14T22:13:20Z")
    assert await refused(pbs) == (400, "backup directory already exists.")


async def test_previous_marked_as_failed_by_the_script_is_no_base(pbs: FakePbs) -> None:
    await make_backup(pbs, b"disk")
    pbs.faults.add(Fault(kind=FaultKind.PREVIOUS_FAILED))
    async with session(pbs, backup_time=TIME_S + 1) as opened:
        answer = await opened.call("GET", "previous", archive_name="index.json.blob")
        assert answer.text == "no valid previous backup"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            {"backup_time": 0},
            "parameter verification failed - 'backup-time': "
            "value must have a minimum value of 1 (got 0)",
        ),
        (
            {"backup_type": "disk"},
            "parameter verification failed - 'backup-type': "
            "value 'disk' is not defined in the enumeration.",
        ),
        (
            {"colour": "red"},
            "parameter verification failed - 'colour': "
            "schema does not allow additional properties.",
        ),
        (
            {"colour": "red", "backup_id": ".x"},
            "parameter verification failed:\n"
            "- 'backup-id': value does not match the regex pattern\n"
            "- 'colour': schema does not allow additional properties.\n",
        ),
    ],
)
async def test_wrong_parameters_of_an_upgrade_are_named(
    pbs: FakePbs, values: dict[str, Any], text: str
) -> None:
    assert await refused(pbs, **values) == (400, text)


# -- readers ----------------------------------------------------------------------------------


async def test_reader_needs_its_privilege_or_its_own_group(pbs: FakePbs) -> None:
    await make_backup(pbs, b"disk")
    nobody = limited(pbs, "no@pbs!t", "Datastore.Audit")
    assert await refused(pbs, "reader", headers=nobody) == (
        403, "no permissions on /datastore/tank",
    )  # fmt: skip
    other = limited(pbs, "eve@pbs!t", "Datastore.Backup")
    told = await refused(pbs, "reader", headers=other)
    assert told == (400, "backup owner check failed!")
    for headers in (limited(pbs, "eve@pbs!r", "Datastore.Read"), TOKEN_HEADERS):
        async with session(pbs, "reader", headers=headers):
            pass


async def test_reader_of_a_backup_that_is_not_there_is_refused(pbs: FakePbs) -> None:
    told = await refused(pbs, "reader")
    text = "snapshot tank:vm/100/2023-11-14T22:13:20Z does not exist."
    assert told == (400, text)


async def test_backup_that_is_being_made_cannot_be_read(pbs: FakePbs) -> None:
    async with session(pbs):
        streams, task = pbs.connect()
        answer: Answer = await upgrade(streams, backup_target("reader"), READER_PROTOCOL)
        assert answer.status == 400
        assert answer.text.startswith("unable to acquire lock on snapshot directory")
        streams[1].close()
        await task


async def test_backup_that_is_being_read_cannot_be_removed(pbs: FakePbs) -> None:
    await make_backup(pbs, b"disk")
    target = backup_target("admin/datastore/tank/snapshots").replace("store=tank&", "")
    async with session(pbs, "reader"):
        answer = await ask(pbs, "DELETE", target)
        assert answer.status == 400
        assert "possibly running or in use" in answer.text
    assert (await ask(pbs, "DELETE", target)).value is None
