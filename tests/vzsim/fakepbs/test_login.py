"""Tickets and API tokens, and how both are refused."""

from __future__ import annotations

import json
import re
from urllib.parse import urlencode

import pytest

from tests.vzsim.fakepbs.conftest import HandClock
from tests.vzsim.fakepbs.raw_client import TOKEN_HEADERS, Answer, api, ask
from vzsim.fakepbs import (
    DEFAULT_TOKEN,
    DEFAULT_USER,
    Account,
    FakePbs,
    Fault,
    FaultKind,
    PbsConfig,
    PbsSurroundings,
)

USER = DEFAULT_USER.auth_id


async def log_in(pbs: FakePbs, password: str, username: str = USER, **others: object) -> Answer:
    body = json.dumps({"username": username, "password": password, **others}).encode()
    headers = {"Content-Type": "application/json; charset=UTF-8"}
    return await ask(pbs, "POST", api("access/ticket"), headers=headers, body=body)


async def version(pbs: FakePbs, headers: dict[str, str]) -> int:
    return (await ask(pbs, "GET", api("version"), headers=headers)).status


def cookie(ticket: str, name: str = "PBSAuthCookie") -> dict[str, str]:
    return {"Cookie": f"{name}={ticket}"}


async def test_ticket_of_a_password_is_good_for_reading(pbs: FakePbs) -> None:
    value = (await log_in(pbs, DEFAULT_USER.secret)).value
    assert value["username"] == USER
    assert re.fullmatch(rf"PBS:{USER}:6553F164::[A-Za-z0-9+/]+", value["ticket"])
    for name in ("PBSAuthCookie", "__Host-PBSAuthCookie"):
        assert await version(pbs, cookie(value["ticket"], name)) == 200


async def test_login_by_form_is_as_good_as_by_json(pbs: FakePbs) -> None:
    body = urlencode({"username": USER, "password": DEFAULT_USER.secret}).encode()
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await ask(pbs, "POST", api("access/ticket"), headers=headers, body=body)
    assert answer.value["ticket"].startswith("PBS:root@pam:")


@pytest.mark.parametrize(
    ("username", "password"),
    [(USER, "wrong"), ("nobody@pam", "x"), (DEFAULT_TOKEN.auth_id, DEFAULT_TOKEN.secret)],
)
async def test_wrong_login_is_refused(pbs: FakePbs, username: str, password: str) -> None:
    answer = await log_in(pbs, password, username)
    assert (answer.status, answer.text) == (401, "permission check failed.")


async def test_ticket_lives_two_hours_and_renews_itself_while_it_lives(
    pbs: FakePbs, clock: HandClock
) -> None:
    first = (await log_in(pbs, DEFAULT_USER.secret)).value["ticket"]
    clock.now_s += 7200
    second = (await log_in(pbs, first)).value["ticket"]
    clock.now_s += 1
    assert await version(pbs, cookie(first)) == 401
    assert await version(pbs, cookie(second)) == 200
    assert (await log_in(pbs, first)).status == 401
    assert (pbs.counters.login_count, pbs.counters.renewal_count) == (1, 2)


async def test_ticket_from_the_future_is_taken_within_the_skew(
    pbs: FakePbs, clock: HandClock
) -> None:
    ticket = (await log_in(pbs, DEFAULT_USER.secret)).value["ticket"]
    clock.now_s -= 300
    assert await version(pbs, cookie(ticket)) == 200
    clock.now_s -= 1
    assert await version(pbs, cookie(ticket)) == 401


async def test_ticket_that_was_changed_is_refused(pbs: FakePbs) -> None:
    ticket = (await log_in(pbs, DEFAULT_USER.secret)).value["ticket"]
    assert await version(pbs, cookie(ticket[:-1] + ("A" if ticket[-1] != "A" else "B"))) == 401
    assert await version(pbs, cookie(ticket.replace("root", "eve"))) == 401
    assert await version(pbs, cookie("")) == 401


async def test_writing_with_a_ticket_needs_the_token_against_forged_requests(
    pbs: FakePbs,
) -> None:
    value = (await log_in(pbs, DEFAULT_USER.secret)).value
    target = api("admin/datastore/tank/namespace", name="a")
    headers = cookie(value["ticket"])
    assert (await ask(pbs, "POST", target, headers=headers)).status == 401
    headers["CSRFPreventionToken"] = value["CSRFPreventionToken"]
    assert (await ask(pbs, "POST", target, headers=headers)).value == "a"


async def test_refused_renewal_leaves_logins_alone(pbs: FakePbs) -> None:
    pbs.faults.add(Fault(kind=FaultKind.RENEWAL_REFUSED))
    ticket = (await log_in(pbs, DEFAULT_USER.secret)).value["ticket"]
    answer = await log_in(pbs, ticket)
    assert (answer.status, answer.text) == (401, "permission check failed.")
    assert (await log_in(pbs, ticket)).status == 200


async def test_cookie_of_a_login_for_browsers_is_good(pbs: FakePbs) -> None:
    answer = await log_in(pbs, DEFAULT_USER.secret, **{"http-only": True})
    assert "ticket" not in answer.value
    assert answer.value["ticket-info"].startswith(f"PBS:{USER}:")
    name, _, ticket = answer.headers["set-cookie"].partition(";")[0].partition("=")
    assert await version(pbs, cookie(ticket, name)) == 200


async def test_old_server_knows_no_login_for_browsers(clock: HandClock) -> None:
    pbs = FakePbs(PbsConfig(version="3.2.4"), PbsSurroundings(now_s=clock, chance=bytes))
    answer = await log_in(pbs, DEFAULT_USER.secret, **{"http-only": True})
    assert answer.text == (
        "parameter verification failed - 'http-only': schema does not allow additional properties."
    )


async def test_ticket_before_the_second_factor_is_good_for_nothing(pbs: FakePbs) -> None:
    pbs.accounts.add(Account(auth_id=USER, secret="x", has_second_factor=True))
    ticket = (await log_in(pbs, "x")).value["ticket"]
    assert ticket.startswith("PBS:!tfa!")
    assert await version(pbs, cookie(ticket)) == 401


@pytest.mark.parametrize("separator", [" ", "="])
async def test_token_is_taken_with_either_separator(pbs: FakePbs, separator: str) -> None:
    text = f"PBSAPIToken{separator}{DEFAULT_TOKEN.auth_id}:{DEFAULT_TOKEN.secret}"
    assert await version(pbs, {"Authorization": text}) == 200


@pytest.mark.parametrize(
    "text",
    [
        f"PBSAPIToken={DEFAULT_TOKEN.auth_id}={DEFAULT_TOKEN.secret}",
        f"PBSAPIToken={DEFAULT_TOKEN.auth_id}:wrong",
        f"PBSAPIToken={USER}:{DEFAULT_USER.secret}",
        "Basic cm9vdDp4",
    ],
)
async def test_token_in_another_form_is_refused(pbs: FakePbs, text: str) -> None:
    answer = await ask(pbs, "GET", api("version"), headers={"Authorization": text})
    assert (answer.status, answer.text) == (401, "authentication failed")


async def test_revoked_token_is_refused_at_once(pbs: FakePbs) -> None:
    assert await version(pbs, TOKEN_HEADERS) == 200
    pbs.accounts.revoke(DEFAULT_TOKEN.auth_id)
    assert await version(pbs, TOKEN_HEADERS) == 401
    assert pbs.counters.refusals[401] == 1
