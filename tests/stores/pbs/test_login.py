"""What proves who we are, and that no text made of it shows it."""

from __future__ import annotations

import json
import pickle

import pytest

from tests.stores.pbs.running_server import SkippingClock
from vzdump_qemu.errors import PbsError, PbsRefused
from vzdump_qemu.formats.pbs.repository import AuthId
from vzdump_qemu.stores.pbs import Secret, TicketLogin, TokenLogin, make_login
from vzdump_qemu.stores.pbs.http1 import Http1Request

USER = AuthId.parse("root@pam")
TOKEN = AuthId.parse("root@pam!vzdump")


class LoginServer:
    """Answers logins with numbered tickets; keeps what was asked."""

    def __init__(self, *replies: object) -> None:
        self.replies = list(replies)
        self.passwords: list[str] = []

    async def send(self, request: Http1Request) -> bytes:
        assert (request.method, request.path) == ("POST", "/api2/json/access/ticket")
        self.passwords.append(json.loads(request.body)["password"])
        reply = self.replies.pop(0) if self.replies else None
        if isinstance(reply, Exception):
            raise reply
        if reply is not None:
            return json.dumps(reply).encode()
        number = len(self.passwords)
        return json.dumps(
            {"ticket": f"PBS:root@pam:{number:08X}::a b=", "CSRFPreventionToken": f"{number}:t"}
        ).encode()


async def test_token_is_one_header_with_the_secret_escaped() -> None:
    login = TokenLogin(TOKEN, Secret('a b"é:/+'))
    headers = await login.headers(LoginServer().send, changes=True)
    assert headers == {"Authorization": "PBSAPIToken root@pam!vzdump:a%20b%22%C3%A9:/+"}
    assert not login.forget()


def test_token_login_of_a_user_is_refused() -> None:
    with pytest.raises(PbsError, match="is no API token"):
        TokenLogin(USER, Secret("x"))


async def test_ticket_goes_into_a_cookie_and_changes_need_the_other_token() -> None:
    server = LoginServer()
    login = make_login(USER, Secret("pw"), SkippingClock())
    headers = await login.headers(server.send, changes=False)
    assert headers == {"Cookie": "PBSAuthCookie=PBS:root@pam:00000001::a%20b="}
    headers = await login.headers(server.send, changes=True)
    assert headers["CSRFPreventionToken"] == "1:t"
    assert server.passwords == ["pw"]


async def test_ticket_is_renewed_by_itself_then_by_the_password_where_it_is_too_old() -> None:
    clock = SkippingClock()
    server = LoginServer()
    login = TicketLogin(USER, Secret("pw"), clock)
    await login.headers(server.send, changes=False)
    clock.skip(15 * 60)
    await login.headers(server.send, changes=False)
    clock.skip(2 * 60 * 60)
    await login.headers(server.send, changes=False)
    assert server.passwords == ["pw", "PBS:root@pam:00000001::a b=", "pw"]


async def test_renewal_that_is_refused_falls_back_to_the_password() -> None:
    clock = SkippingClock()
    server = LoginServer(None, PbsRefused("no", status=401))
    login = TicketLogin(USER, Secret("pw"), clock)
    await login.headers(server.send, changes=False)
    clock.skip(15 * 60)
    headers = await login.headers(server.send, changes=False)
    assert "00000003" in headers["Cookie"]
    assert server.passwords[2] == "pw"


@pytest.mark.parametrize(
    "reply",
    [
        {},
        [],
        {"ticket": ""},
        {"ticket": 1},
        {"ticket": "PBS:!tfa!{}:00::"},
        {"ticket": "PBS:secret", "CSRFPreventionToken": "a\r\nX: y"},
    ],
)
async def test_odd_login_reply_is_an_error_that_shows_no_ticket(reply: object) -> None:
    login = TicketLogin(USER, Secret("hidden"), SkippingClock())
    with pytest.raises(PbsError) as caught:
        await login.headers(LoginServer(reply).send, changes=False)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_secret_shows_itself_in_no_text_and_no_file() -> None:
    secret = Secret("hidden")
    assert "hidden" not in f"{secret} {secret!r} {[secret]}"
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    assert secret == Secret("hidden")
    assert secret != Secret("other")


def test_request_shows_neither_headers_nor_body() -> None:
    request = Http1Request(
        method="POST", path="/", body=b"hidden", headers={"Authorization": "hidden"}
    )
    assert "hidden" not in repr(request)
