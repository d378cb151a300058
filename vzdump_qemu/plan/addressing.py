"""Whom ``mailto`` means; pure.

Owns the difference between user names of a node and mail addresses. Source: host behaviour,
sections 1.14, 2.1 and 2.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vzdump_qemu.formats.mail_addresses import is_mail_address

_SEPARATORS = re.compile(r"[\s,;]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipients:
    """Whom a message goes to.

    Attributes:
        addresses: each once, in the order given.
        unknown: user names without an address, and words that are none.
    """

    addresses: tuple[str, ...]
    unknown: tuple[str, ...]


def split_mailto(texts: Iterable[str]) -> tuple[str, ...]:
    """The words of ``mailto``, each once."""
    words = _SEPARATORS.split(",".join(texts))
    return tuple(dict.fromkeys(word for word in words if word))


def find_recipients(words: Iterable[str], address_by_user: Mapping[str, str]) -> Recipients:
    """Turn what ``mailto`` names into addresses.

    A word that is the name of a user means his address; any other word is an address, or a
    mailbox of this host.
    """
    addresses: dict[str, None] = {}
    unknown = []
    for word in words:
        address = address_by_user.get(word, word)
        if is_mail_address(address):
            addresses[address] = None
        else:
            unknown.append(word)
    return Recipients(addresses=tuple(addresses), unknown=tuple(unknown))
