"""Requests and replies of the API, whatever HTTP version carries them.

Owns the values, the error that becomes a plain-text reply, and where parameters may stand: query,
form or JSON. Which parameters an endpoint takes is in `parameters`. Source: PBS formats, section 2.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qsl

JSON_TYPE: Final = "application/json;charset=UTF-8"
FILE_TYPE: Final = "application/octet-stream"
FORM_TYPE: Final = "application/x-www-form-urlencoded"
# What the server reads of a body that holds parameters.
PARAMETER_BYTES_MAX: Final = 512 * 1024

_REASONS: Final = {
    101: "Switching Protocols", 200: "OK", 400: "Bad Request", 401: "Unauthorized",
    403: "Forbidden", 404: "Not Found", 414: "URI Too Long", 500: "Internal Server Error",
    503: "Service Unavailable",
}  # fmt: skip


class ApiError(Exception):
    """The request is answered with this text, which is plain although its type says JSON.

    Args:
        is_about_credentials: the reply is held back as the server does against guessing.
    """

    def __init__(self, text: str, *, status: int = 400, is_about_credentials: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.status = status
        self.is_about_credentials = is_about_credentials


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, whole.

    Attributes:
        path: without query; with ``/api2/json`` on HTTP/1.1, without it on HTTP/2.
        headers: names in lower case.
        body: what was kept; no longer than the largest upload and one byte.
        body_bytes: how long the body really was.
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)
    body_bytes: int = 0

    @property
    def endpoint(self) -> str:
        """How counters and fault scripts name it, ``POST /fixed_chunk``."""
        return f"{self.method} {self.path.removeprefix('/api2/json')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One reply, whole."""

    status: int = 200
    body: bytes = field(default=b"", repr=False)
    content_type: str = JSON_TYPE
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def reason(self) -> str:
        return _REASONS.get(self.status, "Unknown")


def data_reply(value: object, *headers: tuple[str, str]) -> Reply:
    """A value as the API wraps it."""
    return Reply(body=json.dumps({"data": value}).encode(), headers=headers)


def file_reply(content: bytes) -> Reply:
    """A file as it lies in the datastore."""
    return Reply(body=content, content_type=FILE_TYPE)


def error_reply(error: ApiError) -> Reply:
    """The error as text."""
    return Reply(status=error.status, body=error.text.encode())


def read_parameters(request: Request, *, is_upload: bool = False) -> dict[str, Any]:
    """All parameters: texts from query and form, lists for repeated names, any JSON value.

    Args:
        is_upload: the body is a file, and only the query holds parameters.

    Raises:
        ApiError: a body of another type, too long, or no JSON object.
    """
    if is_upload or request.method not in ("POST", "PUT"):
        return _read_pairs(request.query)
    content_type = request.headers.get("content-type", FORM_TYPE).strip().lower()
    if request.body_bytes > PARAMETER_BYTES_MAX:
        raise ApiError("Request body too large")
    if content_type.startswith("application/json"):
        return _read_json(request.body)
    if not content_type.startswith(FORM_TYPE):
        raise ApiError(f'unsupported content type "{content_type}"')
    return _read_pairs("&".join(filter(None, (request.query, request.body.decode("latin-1")))))


def _read_json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body or b"{}")
    except ValueError as error:
        raise ApiError(f"unable to parse JSON body: {error}") from error
    if not isinstance(value, dict):
        raise ApiError("parameter verification failed: Expected an object.")
    return value


def _read_pairs(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in _split_pairs(text):
        if name in found:
            earlier = found[name]
            found[name] = [*earlier, value] if isinstance(earlier, list) else [earlier, value]
        else:
            found[name] = value
    return found


@lru_cache(maxsize=64)
def _split_pairs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple(parse_qsl(text, keep_blank_values=True))
