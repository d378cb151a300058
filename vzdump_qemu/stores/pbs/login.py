"""Who we are to a server: an API token, or a user's password turned into a ticket.

Owns the headers of both and the renewal of tickets on long runs; connections are `endpoint`'s.
Source: PBS formats, section 2.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias
from urllib.parse import quote

import msgspec

from vzdump_qemu.errors import PbsCorrupt, PbsError, PbsRefused
from vzdump_qemu.formats.pbs import AuthId
from vzdump_qemu.formats.pbs.json_text import canonical_json, decode_json
from vzdump_qemu.ports import Clock
from vzdump_qemu.secret import Secret
from vzdump_qemu.stores.pbs.http1 import JSON_TYPE, Http1Request
from vzdump_qemu.units import KIB, NS_PER_S

# Tickets live for two hours; the reference client renews as often as this.
RENEW_AFTER_S: Final = 15 * 60
TICKET_LIFE_S: Final = 2 * 60 * 60
_REPLY_BYTES_MAX: Final = 64 * KIB
# What servers decode again; everything that would break a header is in it.
_UNESCAPED: Final = "!$&'()*+,/:;=@[]^|~-._\\"

Send: TypeAlias = Callable[[Http1Request], Awaitable[bytes]]


class Login(Protocol):
    """Gives requests what proves who sends them."""

    async def headers(self, send: Send, *, changes: bool) -> Mapping[str, str]:
        """Headers for the next request.

        Args:
            send: carries one HTTP/1.1 request without credentials; returns ``data`` of the reply.
            changes: the request is no GET.
        Raises:
            PbsError: the server does not know us, or does not any more.
        """
        ...

    def forget(self) -> bool:
        """The server did not accept the headers; whether asking for new ones may help."""
        ...


class TokenLogin:
    """An API token, which needs no call of its own.

    Raises:
        PbsError: the id is a user's.
    """

    def __init__(self, auth_id: AuthId, secret: Secret) -> None:
        if not auth_id.is_token:
            raise PbsError(f"'{auth_id}' is no API token")
        self._auth_id = auth_id
        self._secret = secret

    async def headers(self, send: Send, *, changes: bool) -> Mapping[str, str]:
        """As the port says; nothing is asked."""
        return {"Authorization": f"PBSAPIToken {self._auth_id}:{_escape(self._secret.reveal())}"}

    def forget(self) -> bool:
        """A token that was refused once is refused again."""
        return False


class TicketLogin:
    """A user with a password.

    A ticket is renewed by itself; where that is refused, by the password.
    """

    def __init__(self, auth_id: AuthId, secret: Secret, clock: Clock) -> None:
        self._auth_id = auth_id
        self._secret = secret
        self._clock = clock
        self._ticket: _Ticket | None = None
        self._lock = asyncio.Lock()

    async def headers(self, send: Send, *, changes: bool) -> Mapping[str, str]:
        """As the port says; logs in or renews first where that is due."""
        async with self._lock:
            ticket = self._ticket = await self._current(send)
        headers = {"Cookie": f"PBSAuthCookie={_escape(ticket.text)}"}
        if changes:
            headers["CSRFPreventionToken"] = ticket.csrf_token
        return headers

    def forget(self) -> bool:
        """The next headers come from the password; helps if there was a ticket."""
        had_one, self._ticket = self._ticket is not None, None
        return had_one

    async def _current(self, send: Send) -> _Ticket:
        ticket = self._ticket
        if ticket is not None:
            age_s = (self._clock.now_ns() - ticket.made_ns) / NS_PER_S
            if age_s < RENEW_AFTER_S:
                return ticket
            if age_s < TICKET_LIFE_S:
                try:
                    return await self._ask(send, Secret(ticket.text))
                except PbsRefused:
                    # A server that was set up anew takes no old tickets, but knows the password.
                    pass
        return await self._ask(send, self._secret)

    async def _ask(self, send: Send, password: Secret) -> _Ticket:
        made_ns = self._clock.now_ns()
        body = canonical_json({"username": str(self._auth_id), "password": password.reveal()})
        raw = await send(
            Http1Request(
                method="POST",
                path="/api2/json/access/ticket",
                body=body,
                content_type=JSON_TYPE,
            )
        )
        try:
            parsed = decode_json(raw, _TicketJson, bytes_max=_REPLY_BYTES_MAX, what="login reply")
        except PbsCorrupt:
            # Not chained, and not told: the cause may quote the ticket.
            raise PbsError("the server's login reply cannot be read") from None
        if parsed.ticket.startswith("PBS:!tfa!"):
            raise PbsError(
                f"login of '{self._auth_id}' needs a second factor",
                hint="use an API token",
            )
        token = parsed.csrf_token
        if not parsed.ticket or not (token.isascii() and token.isprintable()):
            raise PbsError("the server's login reply cannot be used")
        return _Ticket(text=parsed.ticket, csrf_token=token, made_ns=made_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ticket:
    text: str = field(repr=False)
    csrf_token: str = field(repr=False)
    made_ns: int


class _TicketJson(msgspec.Struct):
    ticket: str
    csrf_token: str = msgspec.field(name="CSRFPreventionToken", default="")


def make_login(auth_id: AuthId, secret: Secret, clock: Clock) -> Login:
    """The login that fits the id."""
    if auth_id.is_token:
        return TokenLogin(auth_id, secret)
    return TicketLogin(auth_id, secret, clock)


def _escape(text: str) -> str:
    return quote(text, safe=_UNESCAPED)
