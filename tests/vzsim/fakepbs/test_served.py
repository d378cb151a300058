"""The server on a real socket with TLS, as clients of this machine see it."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.vzsim.fakepbs.raw_client import (
    BACKUP_PROTOCOL,
    CHUNK_BYTES,
    RawSession,
    api,
    backup_target,
    http1,
    upgrade,
    upload_data_blob,
    upload_disk,
    upload_manifest,
)
from vzdump_qemu.formats.pbs import Fingerprint, Repository
from vzsim.cli import main
from vzsim.fakepbs.streams import Streams
from vzsim.pytest_plugin import PbsFixture


def trusting() -> ssl.SSLContext:
    """Looks at no chain; the tests compare fingerprints."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[Streams, str]]:
    """A connection, and the fingerprint it was shown."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting())
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    try:
        yield (reader, writer), str(Fingerprint.of_certificate(shown))
    finally:
        writer.close()


def token_headers(repository: Repository, secret: str) -> dict[str, str]:
    return {"Authorization": f"PBSAPIToken {repository.auth_id}:{secret}"}


@pytest.mark.slow
async def test_backup_over_tls_lies_on_disk_in_the_layout_of_a_datastore(
    fake_pbs: PbsFixture,
) -> None:
    content = b"\1" * CHUNK_BYTES + b"short"
    async with fake_pbs.serving() as served:
        headers = token_headers(served.repository, served.token_secret)
        async with connected(served.repository.port) as (streams, fingerprint):
            assert fingerprint == served.fingerprint
            target = backup_target()
            answer = await upgrade(streams, target, BACKUP_PROTOCOL, headers)
            assert (answer.status, answer.headers["upgrade"]) == (101, BACKUP_PROTOCOL)
            opened = RawSession(streams)
            disk = await upload_disk(opened, "drive-scsi0.img.fidx", content)
            await upload_manifest(opened, [disk])
            assert (await opened.call("POST", "finish")).value is None
            await opened.close()
    root = fake_pbs.directory / "tank"
    found = {
        str(path.relative_to(root)) for path in root.rglob("*")
        if path.is_file() and ".chunks" not in path.parts
    }  # fmt: skip
    backup = "vm/100/2023-11-14T22:13:20Z"
    assert found == {
        "vm/100/owner", f"{backup}/drive-scsi0.img.fidx", f"{backup}/index.json.blob",
    }  # fmt: skip
    chunks = [path for path in (root / ".chunks").rglob("*") if path.is_file()]
    assert len(chunks) == 2
    assert all(path.name.startswith(path.parent.name) for path in chunks)


@pytest.mark.slow
async def test_certificate_changed_shows_another_fingerprint(fake_pbs: PbsFixture) -> None:
    async with fake_pbs.serving() as served:
        before = served.fingerprint
        served.change_certificate()
        async with connected(served.repository.port) as (_, fingerprint):
            assert fingerprint == served.fingerprint != before


@pytest.mark.slow
async def test_script_of_the_fixture_is_carried_out(fake_pbs: PbsFixture) -> None:
    fake_pbs.script('[[fault]]\nkind = "reply"\nendpoint = "GET /version"\ntext = "not now"\n')
    async with fake_pbs.serving() as served:
        headers = token_headers(served.repository, served.token_secret)
        async with connected(served.repository.port) as (streams, _):
            first = await http1(streams, "GET", api("version"), headers=headers)
            second = await http1(streams, "GET", api("version"), headers=headers)
    assert (first.status, first.text, second.status) == (500, "not now", 200)


@pytest.mark.slow
async def test_served_process_prints_what_a_client_needs_and_ends_by_signal(
    tmp_path: Path,
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "vzsim.cli", "serve", "--pbs", str(tmp_path),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    told = {}
    for _ in range(3):
        line = shlex.split((await process.stdout.readline()).decode())[0]
        name, _, value = line.partition("=")
        told[name] = value
    repository = Repository.parse(told["PBS_REPOSITORY"])
    async with connected(repository.port) as (streams, fingerprint):
        assert fingerprint == told["PBS_FINGERPRINT"]
        headers = token_headers(repository, told["PBS_PASSWORD"])
        answer = await http1(streams, "GET", api("version"), headers=headers)
        assert answer.value["version"] == "4.2"
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == os.EX_OK


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "either --qmp or --pbs is needed"),
        (["--qmp", "a.sock", "--pbs", "b"], "either --qmp or --pbs is needed"),
        (["--pbs", "b", "--paused"], "--pbs goes with --script and --port alone"),
    ],
)
def test_one_of_machine_and_backup_server_is_served(arguments: list[str], text: str) -> None:
    result = CliRunner().invoke(main, ["serve", *arguments])
    assert result.exit_code == 2
    assert text in result.output


@pytest.mark.slow
async def test_user_with_the_password_told_can_log_in(fake_pbs: PbsFixture) -> None:
    async with fake_pbs.serving() as served:
        repository = served.user_repository
        assert (repository.port, str(repository.auth_id)) == (
            served.repository.port, "root@pam",
        )  # fmt: skip
        body = json.dumps({"username": "root@pam", "password": served.password}).encode()
        headers = {"Content-Type": "application/json"}
        async with connected(repository.port) as (streams, _):
            answer = await http1(streams, "POST", api("access/ticket"), headers=headers, body=body)
            assert answer.value["ticket"].startswith("PBS:root@pam:")


@pytest.mark.slow
async def test_backup_under_way_is_gone_when_the_server_stops(fake_pbs: PbsFixture) -> None:
    async with fake_pbs.serving() as served:
        headers = token_headers(served.repository, served.token_secret)
        async with connected(served.repository.port) as (streams, _):
            await upgrade(streams, backup_target(), BACKUP_PROTOCOL, headers)
            opened = RawSession(streams)
            await upload_data_blob(opened, "a.blob", b"a")
            await served.listener.close()
            assert served.pbs.session_count == 0
            await opened.close()
    assert [path.name for path in (fake_pbs.directory / "tank/vm/100").iterdir()] == ["owner"]


async def test_served_texts_hide_the_secrets(fake_pbs: PbsFixture) -> None:
    async with fake_pbs.serving() as served:
        assert served.token_secret not in repr(served)
        assert served.password not in repr(served)
        told = dict(line.split("=", 1) for line in served.render().splitlines()[:3])
        assert told["PBS_PASSWORD"] == served.token_secret
