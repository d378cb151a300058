"""Mail addresses, and who has which on a node: ``user.cfg`` and ``datacenter.cfg``; pure.

Owns the two lines of these files that mail needs, and which addresses every relay takes. Source:
host behaviour, section 2.1 (`mailto`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_EMAIL_INDEX = 6
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"{_ATOM}(?:\.{_ATOM})*(?:@{_LABEL}(?:\.{_LABEL})*)?")


def is_mail_address(text: str) -> bool:
    """Whether that is an address, or a mailbox of this host, without quoting and in ASCII."""
    return _ADDRESS.fullmatch(text) is not None


def parse_user_addresses(raw: bytes) -> Mapping[str, str]:
    """Addresses by user name (``root@pam``); empty where a user has none."""
    addresses = {}
    for line in raw.decode("utf-8", errors="replace").splitlines():
        words = line.strip().split(":")
        if words[0] == "user" and len(words) > 1:
            email = words[_EMAIL_INDEX] if len(words) > _EMAIL_INDEX else ""
            addresses[words[1]] = email.strip()
    return addresses


def parse_sender_address(raw: bytes) -> str:
    """What ``email_from`` of ``datacenter.cfg`` says; empty if it names no address."""
    sender = ""
    for line in raw.decode("utf-8", errors="replace").splitlines():
        name, separator, value = line.partition(":")
        if separator and name.strip() == "email_from":
            sender = value.strip()
    return sender if is_mail_address(sender) else ""
