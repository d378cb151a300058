"""Who has which mail address on a node."""

import pytest

from vzdump_qemu.formats.mail_addresses import (
    is_mail_address,
    parse_sender_address,
    parse_user_addresses,
)

USERS = b"""\
user:root@pam:1:0:::admin@example.com::
user:eve@pve:1:0:Eve:Doe:eve@example.com:a comment::
user:bare@pve:1:0:
user:none@pam:1:0:::::
group:admins:root@pam::
token:root@pam!x:0:1::
"""


def test_addresses_of_users_are_read() -> None:
    assert parse_user_addresses(USERS) == {
        "root@pam": "admin@example.com",
        "eve@pve": "eve@example.com",
        "bare@pve": "",
        "none@pam": "",
    }


def test_no_file_has_no_users_and_no_sender() -> None:
    assert parse_user_addresses(b"") == {}
    assert parse_sender_address(b"") == ""


def test_sender_is_read() -> None:
    assert parse_sender_address(b"keyboard: de\nemail_from:  pve@example.com \n") == (
        "pve@example.com"
    )
    assert parse_sender_address(b"email_from: not one\n") == ""


@pytest.mark.parametrize("text", ["root", "a.b+c@x", "op@mail.example.com", "o'neil@x-y.example"])
def test_address_is_one(text: str) -> None:
    assert is_mail_address(text)


@pytest.mark.parametrize(
    "text", ["", "a b@x", "a@", "@x", "a@b@c", ".a@x", "a@.x", "a@x.", '"a"@x', "a@[::1]", "ü@x"]
)
def test_text_is_no_address(text: str) -> None:
    assert not is_mail_address(text)
