"""Repository strings, which say where a datastore is and who asks for it.

Owns the grammar ``[[auth-id@]host[:port]:]datastore`` and its defaults; addresses are resolved,
and secrets held, elsewhere. Source: PBS formats, section 1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from vzdump_qemu.errors import PbsError
from vzdump_qemu.formats.pbs.names import SAFE_ID_PATTERN, check_datastore, is_safe_id

DEFAULT_HOST: Final = "localhost"
DEFAULT_PORT: Final = 8007
REPOSITORY_LETTERS_MAX: Final = 512
AUTH_ID_LETTERS_MAX: Final = 128
_HOST_LETTERS_MAX = 253

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_USER_NAME = re.compile(r"[^\s:/\x00-\x1f\x7f]+")
_AUTH_ID = re.compile(rf"(.+)@({SAFE_ID_PATTERN})(?:!({SAFE_ID_PATTERN}))?", re.DOTALL)
# The user name may hold '@', the host cannot: the last '@' is the one between them.
_FORM = re.compile(
    r"(?:(?:(?P<auth>[^:/]*)@)?(?P<host>\[[^\[\]@/]*\]|[^:@/\[\]]*):)?"
    r"(?:(?P<port>[0-9]{1,5}):)?(?P<datastore>[^:@/]*)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthId:
    """Who asks: a user, or one of the user's API tokens. ``str()`` is ``name@realm[!token]``.

    Raises:
        PbsError: letters that the part cannot have, or too many.
    """

    user_name: str
    realm: str
    token_name: str | None = None

    def __post_init__(self) -> None:
        if (
            not _USER_NAME.fullmatch(self.user_name)
            or not is_safe_id(self.realm)
            or (self.token_name is not None and not is_safe_id(self.token_name))
            or len(str(self)) > AUTH_ID_LETTERS_MAX
        ):
            raise _not_an_auth_id(str(self))

    @classmethod
    def parse(cls, text: str) -> AuthId:
        """A user ``name@realm`` or token ``name@realm!token``.

        Raises:
            PbsError: another form.
        """
        match = _AUTH_ID.fullmatch(text) if len(text) <= AUTH_ID_LETTERS_MAX else None
        if not match:
            raise _not_an_auth_id(text)
        return cls(user_name=match[1], realm=match[2], token_name=match[3])

    @property
    def user_id(self) -> str:
        """The user without the token."""
        return f"{self.user_name}@{self.realm}"

    @property
    def is_token(self) -> bool:
        return self.token_name is not None

    def __str__(self) -> str:
        return self.user_id if self.token_name is None else f"{self.user_id}!{self.token_name}"


DEFAULT_AUTH_ID: Final = AuthId(user_name="root", realm="pam")


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A datastore, where it is and who asks for it.

    Attributes:
        host: name, IPv4 or IPv6 address, the last without brackets.

    Raises:
        PbsError: a part that cannot be.
    """

    datastore: str
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    auth_id: AuthId = DEFAULT_AUTH_ID

    def __post_init__(self) -> None:
        check_datastore(self.datastore)
        if not 1 <= self.port <= 65535:
            raise PbsError(f"port {self.port} is out of range")
        if not _is_host(self.host):
            raise PbsError(f"not a host name or address: {self.host[:80]!a}")

    @classmethod
    def parse(cls, text: str) -> Repository:
        """Read any form of a repository string; what is left out has its default.

        Raises:
            PbsError: another form, or a part that cannot be.
        """
        match = _FORM.fullmatch(text) if len(text) <= REPOSITORY_LETTERS_MAX else None
        if not match:
            raise PbsError(
                f"not a repository: {text[:80]!a}",
                hint="[[user@realm[!token]@]host[:port]:]datastore",
            )
        host = match["host"]
        if host is None:
            host = DEFAULT_HOST
        elif host.startswith("["):
            host = host[1:-1]
            if ":" not in host:
                raise PbsError(f"not an IPv6 address: {host[:80]!a}")
        return cls(
            datastore=match["datastore"],
            host=host,
            port=DEFAULT_PORT if match["port"] is None else int(match["port"]),
            auth_id=DEFAULT_AUTH_ID if match["auth"] is None else AuthId.parse(match["auth"]),
        )

    @property
    def url_host(self) -> str:
        """The host as URLs and repository strings have it: an IPv6 address in brackets."""
        return f"[{self.host}]" if ":" in self.host else self.host

    def render(self) -> str:
        """The string with user and host; the port only where it is not 8007."""
        port = "" if self.port == DEFAULT_PORT else f"{self.port}:"
        return f"{self.auth_id}@{self.url_host}:{port}{self.datastore}"


def _is_host(host: str) -> bool:
    if len(host) > _HOST_LETTERS_MAX:
        return False
    if ":" not in host:
        return _HOST_NAME.fullmatch(host) is not None
    # Loaded for the few that need it: every run loads this module.
    import ipaddress

    try:
        # A scope names an interface of this machine and has no place in a stored string.
        return ipaddress.IPv6Address(host).scope_id is None
    except ValueError:
        return False


def _not_an_auth_id(text: str) -> PbsError:
    return PbsError(
        f"not a user or API token: {text[:80]!a}", hint="user@realm or user@realm!token"
    )
