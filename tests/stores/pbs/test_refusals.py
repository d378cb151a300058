"""What a server or a key may refuse: told in one line, before any disk is opened."""

from __future__ import annotations

import asyncio
import traceback
from pathlib import Path

import pytest

from tests.stores.pbs.running_server import (
    RunningServer,
    back_up,
    backup_at,
    running_server,
)
from vzdump_qemu.errors import BackupError, PbsError, PbsKeyError, PbsRefused, PbsUnreachable
from vzdump_qemu.formats.pbs import (
    EncryptionKey,
    Fingerprint,
    Namespace,
    Repository,
    bare_key_file,
    encode_key_file,
)
from vzdump_qemu.stores.pbs import (
    BackupSession,
    PbsEndpoint,
    Secret,
    TlsTrust,
    TokenLogin,
    load_backup_key,
    make_login,
)
from vzdump_qemu.stores.system import SystemClock
from vzsim.fakepbs import (
    DEFAULT_TOKEN,
    DEFAULT_USER,
    Account,
    Certificate,
    Fault,
    FaultKind,
)

DISK = bytes(range(256)) * 64


def assert_one_line(error: BackupError, *secrets: str) -> None:
    shown = "".join(traceback.format_exception(error)) + repr(error) + error.hint
    assert "\n" not in str(error)
    assert str(error)
    for secret in secrets:
        assert secret not in shown


async def refused(endpoint: PbsEndpoint, **options: object) -> PbsError:
    with pytest.raises(PbsError) as caught:
        await back_up(endpoint, 0, [DISK], **options)  # type: ignore[arg-type]
    assert_one_line(caught.value, DEFAULT_TOKEN.secret, DEFAULT_USER.secret)
    return caught.value


async def test_wrong_fingerprint_is_refused_before_anything_is_sent() -> None:
    async with running_server() as server:
        error = await refused(server.endpoint(fingerprint=Fingerprint(bytes(32))))
        assert "Certificate fingerprint was not confirmed." in error.message
        assert str(server.listener.fingerprint) in error.message
        assert not server.pbs.counters.requests


async def test_unknown_certificate_without_fingerprint_is_refused() -> None:
    async with running_server() as server:
        endpoint = PbsEndpoint(
            Repository(datastore="tank", host="127.0.0.1", port=server.port),
            trust=TlsTrust(),
            login=make_login(Repository(datastore="tank").auth_id, Secret("x"), SystemClock()),
            clock=SystemClock(),
        )
        error = await refused(endpoint)
        assert "Certificate fingerprint was not confirmed." in error.message
        assert not server.pbs.counters.requests


async def test_authority_that_signed_the_certificate_is_enough(tmp_path: Path) -> None:
    certificate = Certificate.make(SystemClock().wall_s())
    (tmp_path / "ca.pem").write_bytes(certificate.certificate_pem)
    async with running_server() as server:
        server.listener.use_certificate(certificate)
        endpoint = PbsEndpoint(
            server.endpoint().repository,
            trust=TlsTrust(ca_path=str(tmp_path / "ca.pem")),
            login=TokenLogin(server.endpoint().repository.auth_id, Secret(DEFAULT_TOKEN.secret)),
            clock=server.clock,
        )
        await back_up(endpoint, 0, [DISK])
        assert server.pbs.counters.finished_count == 1


async def test_server_without_tls_is_refused_and_hears_no_secret() -> None:
    heard = bytearray()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.read(4096))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    plain = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = plain.sockets[0].getsockname()[1]
    async with plain, running_server() as server:
        error = await refused(RunningServer(server.pbs, server.listener, port).endpoint())
    assert "does not speak TLS" in error.message
    assert DEFAULT_TOKEN.secret.encode() not in heard


async def test_nobody_listening_is_tried_again_and_told() -> None:
    async with running_server() as server:
        dead = RunningServer(server.pbs, server.listener, server.port)
    error = await refused(dead.endpoint())
    assert isinstance(error, PbsUnreachable)
    assert dead.clock.slept_s == [1.0, 1.0]


async def test_revoked_token_is_refused() -> None:
    async with running_server() as server:
        server.pbs.accounts.revoke(DEFAULT_TOKEN.auth_id)
        error = await refused(server.endpoint())
        assert isinstance(error, PbsRefused)
        assert error.status == 401
        assert "token" in error.hint


async def test_wrong_password_is_refused() -> None:
    async with running_server() as server:
        error = await refused(server.endpoint(DEFAULT_USER, secret="nearly right"))
        assert isinstance(error, PbsRefused)
        assert error.message == "permission check failed."


async def test_second_factor_is_refused_with_a_way_out() -> None:
    account = Account(auth_id="two@pbs", secret="factors", has_second_factor=True)
    async with running_server(accounts=(account,)) as server:
        error = await refused(server.endpoint(account))
        assert "second factor" in error.message
        assert error.hint == "use an API token"


async def test_unknown_datastore_is_told_in_the_words_of_the_server() -> None:
    async with running_server(datastores=("other",)) as server:
        error = await refused(server.endpoint())
        assert error.message == "no such datastore 'tank'"


async def test_unknown_namespace_is_told_in_the_words_of_the_server() -> None:
    async with running_server() as server:
        error = await refused(server.endpoint(), namespace=Namespace.parse("a"))
        assert error.message == "namespace not found"


async def test_second_backup_of_a_group_is_refused_while_one_runs() -> None:
    async with running_server() as server:
        endpoint = server.endpoint()
        session = await BackupSession.open(endpoint, Namespace(), backup_at(1))
        error = await refused(endpoint)
        assert "group" in error.message
        await session.close()


async def test_older_backup_time_is_refused() -> None:
    async with running_server() as server:
        endpoint = server.endpoint()
        await back_up(endpoint, 1, [DISK])
        error = await refused(endpoint)
        assert "older than last backup" in error.message


@pytest.mark.parametrize(
    ("account", "count", "asked_count"),
    [(DEFAULT_USER, 1, 2), (DEFAULT_USER, 0, 2), (DEFAULT_TOKEN, 0, 1)],
)
async def test_refused_ticket_is_made_anew_once_and_a_token_never(
    account: Account, count: int, asked_count: int
) -> None:
    async with running_server(
        Fault(
            kind=FaultKind.REPLY,
            endpoint="GET /backup",
            status=401,
            text="authentication failed",
            count=count,
        )
    ) as server:
        if count:
            await back_up(server.endpoint(account), 0, [DISK])
        else:
            error = await refused(server.endpoint(account))
            assert error.message == "authentication failed"
        assert server.pbs.counters.requests["GET /backup"] == asked_count
        assert server.pbs.counters.login_count == (0 if account.is_token else 2)


async def test_renewal_that_is_refused_ends_in_a_login_by_password() -> None:
    async with running_server(Fault(kind=FaultKind.RENEWAL_REFUSED, status=401, count=0)) as server:
        endpoint = server.endpoint(DEFAULT_USER)
        await back_up(endpoint, 0, [DISK])
        server.clock.skip(3600)
        await back_up(endpoint, 1, [DISK])
        assert server.pbs.counters.finished_count == 2


async def test_ticket_is_renewed_by_itself_on_long_runs() -> None:
    async with running_server() as server:
        endpoint = server.endpoint(DEFAULT_USER)
        await back_up(endpoint, 0, [DISK])
        await back_up(endpoint, 1, [DISK])
        assert (server.pbs.counters.login_count, server.pbs.counters.renewal_count) == (1, 0)
        server.clock.skip(16 * 60)
        await back_up(endpoint, 2, [DISK])
        assert server.pbs.counters.renewal_count == 1


def test_missing_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PbsKeyError) as caught:
        load_backup_key(str(tmp_path / "absent"))
    assert_one_line(caught.value)
    assert "unable to read encryption key" in caught.value.message


def test_missing_master_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    bare = bare_key_file(EncryptionKey(bytes(32)), created_s=1, modified_s=1)
    path.write_bytes(encode_key_file(bare))
    assert load_backup_key(str(path)).key == EncryptionKey(bytes(32))
    with pytest.raises(PbsKeyError, match="unable to read master key"):
        load_backup_key(str(path), master_path=str(tmp_path / "absent"))
