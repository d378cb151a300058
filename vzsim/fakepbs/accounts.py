"""Who may do what: users, API tokens, tickets and privileges.

Owns both ways to log in, how tickets are made, renewed and refused, and which privileges hold on
which path. Source: PBS formats, section 2.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, unquote

from vzsim.fakepbs.requests import ApiError

BACKUP: Final = "Datastore.Backup"
READ: Final = "Datastore.Read"
MODIFY: Final = "Datastore.Modify"
PRUNE: Final = "Datastore.Prune"
AUDIT: Final = "Datastore.Audit"
VERIFY: Final = "Datastore.Verify"
ALL_PRIVILEGES: Final = frozenset({BACKUP, READ, MODIFY, PRUNE, AUDIT, VERIFY})

TICKET_LIFE_S: Final = 2 * 3600
_CLOCK_SKEW_S: Final = 300
_COOKIE_NAMES: Final = ("__Host-PBSAuthCookie", "PBSAuthCookie")
_TOKEN_HEADER = re.compile(r"PBSAPIToken[ =]([^:]+):(.*)", re.DOTALL)
_TICKET = re.compile(r"PBS:(?P<data>[^:]*):(?P<time>[0-9A-F]{8,}):(?P<aad>):(?P<signature>.+)")
# Everything printable but what the server encodes stays as it is.
_TICKET_SAFE: Final = "!\"#$%&'()*+,-./;<=>?@[\\]^_`{|}~ "
_SECOND_FACTOR: Final = "!tfa!"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A user ``name@realm`` with a password, or a token ``name@realm!token`` with a secret.

    Attributes:
        privileges: by path; the longest path above what is asked for decides.
        has_second_factor: logging in gives a ticket that is good for nothing here.
    """

    auth_id: str
    secret: str = field(repr=False)
    privileges: Mapping[str, frozenset[str]] = field(default_factory=lambda: {"/": ALL_PRIVILEGES})
    has_second_factor: bool = False

    @property
    def is_token(self) -> bool:
        return "!" in self.auth_id

    def privileges_on(self, path: str) -> frozenset[str]:
        """What the account may do there."""
        above = [
            granted
            for granted in self.privileges
            if granted == "/" or path == granted or path.startswith(f"{granted}/")
        ]
        return self.privileges[max(above, key=len)] if above else frozenset()


class Accounts:
    """All accounts of a server.

    Args:
        ticket_key: signs tickets; a server with another key refuses them.
        now_s: seconds since the epoch.
    """

    def __init__(
        self, accounts: tuple[Account, ...], *, ticket_key: bytes, now_s: Callable[[], float]
    ) -> None:
        self._accounts = {account.auth_id: account for account in accounts}
        self._ticket_key = ticket_key
        self._now_s = now_s

    def add(self, account: Account) -> None:
        """Add an account, or replace it."""
        self._accounts[account.auth_id] = account

    def revoke(self, auth_id: str) -> None:
        """Forget an account; its tickets are refused from now on."""
        self._accounts.pop(auth_id, None)

    def privileges_on(self, auth_id: str, path: str) -> frozenset[str]:
        account = self._accounts.get(auth_id)
        return frozenset() if account is None else account.privileges_on(path)

    def is_renewal(self, password: str) -> bool:
        """Whether a login shows a ticket in place of a password."""
        return _TICKET.fullmatch(password) is not None

    def log_in(self, user_id: str, password: str) -> tuple[str, str]:
        """Ticket and CSRF token for a password, or for a ticket that is still valid.

        Raises:
            ApiError: 401.
        """
        account = self._accounts.get(user_id)
        is_right = account is not None and not account.is_token
        if account is not None and is_right:
            if self.is_renewal(password):
                is_right = self._user_of(password) == user_id
            else:
                is_right = hmac.compare_digest(account.secret.encode(), password.encode())
        if account is None or not is_right:
            raise ApiError("permission check failed.", status=401, is_about_credentials=True)
        if account.has_second_factor:
            challenge = quote('{"totp":true}', safe="")
            return self._sign("PBS", f"{_SECOND_FACTOR}{challenge}"), self._csrf_token(user_id)
        return self._sign("PBS", quote(user_id, safe=_TICKET_SAFE)), self._csrf_token(user_id)

    def authenticate(self, headers: Mapping[str, str], *, is_get: bool) -> str:
        """Who sent a request with these headers.

        Raises:
            ApiError: 401.
        """
        auth_id = self._by_token(headers) or self._by_cookie(headers, is_get=is_get)
        if auth_id is None:
            raise ApiError("authentication failed", status=401, is_about_credentials=True)
        return auth_id

    def _by_token(self, headers: Mapping[str, str]) -> str | None:
        match = _TOKEN_HEADER.fullmatch(headers.get("authorization", ""))
        if match is None:
            return None
        account = self._accounts.get(match[1])
        if account is None or not account.is_token:
            return None
        secret = unquote(match[2])
        is_right = hmac.compare_digest(account.secret.encode(), secret.encode())
        return account.auth_id if is_right else None

    def _by_cookie(self, headers: Mapping[str, str], *, is_get: bool) -> str | None:
        pairs = (each.strip().partition("=") for each in headers.get("cookie", "").split(";"))
        cookies = {name: value for name, _, value in pairs}
        name = next((name for name in _COOKIE_NAMES if name in cookies), None)
        if name is None:
            return None
        user_id = self._user_of(unquote(cookies[name]))
        if user_id is None:
            return None
        if not is_get and not self._is_csrf_token(headers.get("csrfpreventiontoken", ""), user_id):
            return None
        return user_id

    def _user_of(self, ticket: str) -> str | None:
        match = _TICKET.fullmatch(ticket)
        if match is None or match["data"].startswith(_SECOND_FACTOR):
            return None
        expected = self._signature(f"PBS:{match['data']}:{match['time']}:")
        age_s = self._now_s() - int(match["time"], 16)
        user_id = unquote(match["data"])
        is_right = hmac.compare_digest(expected, match["signature"])
        is_young = -_CLOCK_SKEW_S <= age_s <= TICKET_LIFE_S
        return user_id if is_right and is_young and user_id in self._accounts else None

    def _sign(self, prefix: str, ticket_data: str) -> str:
        text = f"{prefix}:{ticket_data}:{int(self._now_s()):08X}:"
        return f"{text}:{self._signature(text)}"

    def _csrf_token(self, user_id: str) -> str:
        time = f"{int(self._now_s()):08X}"
        return f"{time}:{self._signature(f'csrf:{user_id}:{time}')}"

    def _is_csrf_token(self, token: str, user_id: str) -> bool:
        time, _, signature = token.partition(":")
        if not re.fullmatch(r"[0-9A-F]{8,16}", time):
            return False
        age_s = self._now_s() - int(time, 16)
        return -_CLOCK_SKEW_S <= age_s <= TICKET_LIFE_S and hmac.compare_digest(
            signature.encode(), self._signature(f"csrf:{user_id}:{time}").encode()
        )

    def _signature(self, text: str) -> str:
        raw = hmac.digest(self._ticket_key, text.encode(), hashlib.sha256)
        return base64.b64encode(raw).decode().rstrip("=")
