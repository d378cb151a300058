"""Repository strings in every form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vzdump_qemu.errors import PbsError
from vzdump_qemu.formats.pbs.repository import DEFAULT_AUTH_ID, AuthId, Repository

TOKEN = AuthId(user_name="backup", realm="pbs", token_name="qemu")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tank", Repository(datastore="tank")),
        ("pbs.example.com:tank", Repository(datastore="tank", host="pbs.example.com")),
        ("10.0.0.1:8008:tank", Repository(datastore="tank", host="10.0.0.1", port=8008)),
        ("[fd00::1]:tank", Repository(datastore="tank", host="fd00::1")),
        (
            "backup@pbs!qemu@[fd00::1]:8008:tank",
            Repository(datastore="tank", host="fd00::1", port=8008, auth_id=TOKEN),
        ),
        ("backup@pbs!qemu@pbs:tank", Repository(datastore="tank", host="pbs", auth_id=TOKEN)),
        (
            "a@example.com@pbs@host:tank",
            Repository(
                datastore="tank",
                host="host",
                auth_id=AuthId(user_name="a@example.com", realm="pbs"),
            ),
        ),
        ("8007:tank", Repository(datastore="tank", host="8007")),
    ],
)
def test_repository_every_form_is_read_and_written(text: str, expected: Repository) -> None:
    assert Repository.parse(text) == expected
    assert Repository.parse(expected.render()) == expected


def test_repository_defaults_are_those_of_pbs() -> None:
    repository = Repository.parse("tank")
    assert repository.render() == "root@pam@localhost:tank"
    assert repository.auth_id == DEFAULT_AUTH_ID and repository.port == 8007
    assert Repository(datastore="tank", host="::1", port=1).render() == "root@pam@[::1]:1:tank"


@pytest.mark.parametrize(
    "text",
    [
        "", "ab", ":tank", "host:", "host:0:tank", "host:65536:tank", "host:123456:tank",
        "host:x:tank", "root@pam:tank", "root@host:tank", "root@pam@:tank", "@host:tank",
        "[fd00::1:tank", "[host]:tank", "[fe80::1%eth0]:tank", "[]:tank", "fd00::1:tank",
        "ho st:tank", "-host:tank", "host-:tank", "host..de:tank", "host:tank\n", "h/x:tank",
        "root@pam!@host:tank", "root@pam!a!b@host:tank", "ho\x00st:tank", "a" * 300 + ":tank",
        "x@y@" * 200 + "host:tank",
    ],
)  # fmt: skip
def test_repository_other_text_is_refused(text: str) -> None:
    with pytest.raises(PbsError):
        Repository.parse(text)


@given(
    st.from_regex(r"[A-Za-z0-9.@!_+-]{1,20}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,10}", fullmatch=True),
    st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,10}", fullmatch=True),
    st.sampled_from(["localhost", "a.b-c.de", "::1", "fd00::2:3", "192.168.1.1"]),
    st.integers(1, 65535),
)
def test_repository_text_returns(
    user_name: str, realm: str, token_name: str | None, host: str, port: int
) -> None:
    auth_id = AuthId(user_name=user_name, realm=realm, token_name=token_name)
    repository = Repository(datastore="tank", host=host, port=port, auth_id=auth_id)
    assert Repository.parse(repository.render()) == repository
    assert AuthId.parse(str(auth_id)) == auth_id
    assert auth_id.is_token is (token_name is not None)


@given(st.text(alphabet="ab@!:[]/.1 \n-", max_size=600))
def test_repository_any_text_is_read_or_refused(text: str) -> None:
    try:
        repository = Repository.parse(text)
    except PbsError:
        return
    assert Repository.parse(repository.render()) == repository


@pytest.mark.parametrize("text", ["", "root", "@pam", "root@", "a b@pam", "a:b@pam", "x" * 130])
def test_auth_id_other_text_is_refused(text: str) -> None:
    with pytest.raises(PbsError):
        AuthId.parse(text)


def test_auth_id_token_knows_its_user() -> None:
    assert (TOKEN.user_id, str(TOKEN)) == ("backup@pbs", "backup@pbs!qemu")
