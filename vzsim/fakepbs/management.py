"""The API on HTTP/1.1 that is no upgrade and no datastore's: version, ping, login, the list.

Owns these calls and finding the others, which `store_calls` answers.
Source: PBS formats, sections 2 and 11.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final
from urllib.parse import quote

from vzdump_qemu.errors import PbsError
from vzdump_qemu.formats.pbs.repository import AuthId
from vzsim.fakepbs.accounts import Accounts
from vzsim.fakepbs.counters import Counters
from vzsim.fakepbs.datastore import Datastore
from vzsim.fakepbs.faults import FaultKind, Faults
from vzsim.fakepbs.parameters import Boolean, Integer, Parameter, Text, check_parameters
from vzsim.fakepbs.requests import ApiError, Reply, Request, data_reply
from vzsim.fakepbs.store_calls import StoreCalls

_API_ROOT: Final = "/api2/json"
_TICKET: Final = (
    Parameter("username", Text(".+", 64)),
    Parameter("password", Text(".+", 4096)),
    Parameter("path", Text(".*"), is_optional=True),
    Parameter("privs", Text(".*"), is_optional=True),
    Parameter("port", Integer(1, 65535), is_optional=True),
    Parameter("tfa-challenge", Text(".*"), is_optional=True),
)
_HTTP_ONLY: Final = Parameter("http-only", Boolean(), is_optional=True)
_COOKIE_SAFE: Final = "!$%&'()*+,-./:;=@[\\]^_|~"


class Management:
    """Answers requests of one server.

    Args:
        version: of the server it claims to be, ``4.2.3``.
    """

    def __init__(
        self,
        version: str,
        accounts: Accounts,
        calls: StoreCalls,
        *,
        counters: Counters,
        faults: Faults,
        datastores: Mapping[str, Datastore],
    ) -> None:
        self._version = version
        self._accounts = accounts
        self._calls = calls
        self._counters = counters
        self._faults = faults
        self._datastores = datastores
        self._endpoints: dict[str, Callable[[Request], Awaitable[Reply]]] = {
            "GET /version": self._tell_version,
            "GET /ping": self._ping,
            "POST /access/ticket": self._log_in,
            "GET /admin/datastore": self._list_datastores,
        }

    async def answer(self, request: Request) -> Reply:
        """Reply to one request. Raises: ApiError."""
        path = request.path
        if not path.startswith(f"{_API_ROOT}/"):
            raise ApiError(f"Path '{path}' not found.", status=404)
        endpoint = self._endpoints.get(request.endpoint)
        if endpoint is not None:
            return await endpoint(request)
        auth_id = self._authenticate(request)
        parts = path.removeprefix(_API_ROOT).split("/")
        if len(parts) == 5 and parts[1:3] == ["admin", "datastore"]:
            reply = await self._calls.answer(request, auth_id, store=parts[3], call=parts[4])
            if reply is not None:
                return reply
        raise ApiError(f"Path '{path}' not found.", status=404)

    def _authenticate(self, request: Request) -> str:
        return self._accounts.authenticate(request.headers, is_get=request.method == "GET")

    async def _tell_version(self, request: Request) -> Reply:
        self._authenticate(request)
        check_parameters(request, ())
        version, _, release = self._version.rpartition(".")
        return data_reply({"version": version, "release": release, "repoid": "fakepbs"})

    async def _ping(self, request: Request) -> Reply:
        check_parameters(request, ())
        return data_reply({"pong": True})

    async def _log_in(self, request: Request) -> Reply:
        is_new = int(self._version.partition(".")[0]) >= 4
        values = check_parameters(request, (*_TICKET, _HTTP_ONLY) if is_new else _TICKET)
        user_id, password = values["username"], values["password"]
        try:
            AuthId.parse(user_id)
        except PbsError as error:
            raise ApiError(
                f"parameter verification failed - 'username': {error.message}"
            ) from error
        if self._accounts.is_renewal(password):
            self._counters.renewal_count += 1
            if self._faults.take(request.endpoint, FaultKind.RENEWAL_REFUSED):
                raise ApiError("permission check failed.", status=401, is_about_credentials=True)
        else:
            self._counters.login_count += 1
        ticket, csrf_token = self._accounts.log_in(user_id, password)
        values_told = {"username": user_id, "CSRFPreventionToken": csrf_token}
        if values.get("http-only"):
            cookie = f"__Host-PBSAuthCookie={quote(ticket, safe=_COOKIE_SAFE)}"
            told = {**values_told, "ticket-info": ticket.rpartition("::")[0]}
            return data_reply(
                told, ("set-cookie", f"{cookie}; Secure; SameSite=Lax; HttpOnly; Path=/;")
            )
        return data_reply({**values_told, "ticket": ticket})

    async def _list_datastores(self, request: Request) -> Reply:
        auth_id = self._authenticate(request)
        check_parameters(request, ())
        return data_reply(
            [
                {"store": name, "comment": "", "mount-status": "nonremovable"}
                for name in sorted(self._datastores)
                if self._accounts.privileges_on(auth_id, f"/datastore/{name}")
            ]
        )
