"""Parameters of the API: what each may be, and the server's words where it is not.

Owns the shapes and the check of a whole set. Source: PBS formats, sections 1 and 2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Protocol

from vzdump_qemu.formats.pbs.names import SAFE_ID_PATTERN
from vzsim.fakepbs.requests import ApiError, Request, read_parameters

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,20}")
_BOOLEANS: Final = {
    "1": True, "true": True, "yes": True, "on": True,
    "0": False, "false": False, "no": False, "off": False,
}  # fmt: skip


# One backup says the same names again and again; none is longer than a shape allows.
@lru_cache(maxsize=256)
def _fits(pattern: str, text: str) -> bool:
    return re.fullmatch(pattern, text, re.DOTALL) is not None


class Shape(Protocol):
    """What a value may be."""

    def read(self, value: object) -> Any:
        """The value as the server uses it. Raises: ValueError with the server's words."""
        ...


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number within bounds, as text or number."""

    value_min: int
    value_max: int

    def read(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError("Expected integer value.")
        if isinstance(value, str) and not _INTEGER.fullmatch(value):
            raise ValueError("invalid digit found in string")
        number = int(value)
        if number < self.value_min:
            raise ValueError(f"value must have a minimum value of {self.value_min} (got {number})")
        if number > self.value_max:
            raise ValueError(f"value must have a maximum value of {self.value_max} (got {number})")
        return number


@dataclass(frozen=True, slots=True)
class Text:
    """A text that a pattern fits as a whole."""

    pattern: str
    letters_max: int = 4096

    def read(self, value: object) -> str:
        if not isinstance(value, str):
            raise ValueError("Expected string value.")
        if len(value) > self.letters_max:
            raise ValueError(f"value may only be {self.letters_max} characters long")
        if not _fits(self.pattern, value):
            raise ValueError("value does not match the regex pattern")
        return value


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some words."""

    words: tuple[str, ...]

    def read(self, value: object) -> str:
        if not isinstance(value, str):
            raise ValueError("Expected string value.")
        if value not in self.words:
            raise ValueError(f"value '{value}' is not defined in the enumeration.")
        return value


@dataclass(frozen=True, slots=True)
class Boolean:
    """True or false in one of four spellings, or as JSON has it."""

    def read(self, value: object) -> bool:
        if isinstance(value, bool):
            return value
        if not isinstance(value, str) or value.lower() not in _BOOLEANS:
            raise ValueError("Expected boolean value.")
        return _BOOLEANS[value.lower()]


@dataclass(frozen=True, slots=True)
class ListOf:
    """Any number of one shape; a single value outside of JSON is a list of one."""

    item: Shape

    def read(self, value: object) -> list[Any]:
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list):
            raise ValueError("Expected array - got scalar value.")
        return [self.item.read(each) for each in value]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of an endpoint."""

    name: str
    shape: Shape
    is_optional: bool = False


DIGEST: Final = Text("[a-f0-9]{64}")
STORE: Final = Text(SAFE_ID_PATTERN, 32)
NAMESPACE: Final = Text(f"(?:{SAFE_ID_PATTERN}(?:/{SAFE_ID_PATTERN}){{0,7}})?", 256)
BACKUP_TYPE: Final = Choice(("vm", "ct", "host"))
FILE_NAME: Final = Text(SAFE_ID_PATTERN, 255)

GROUP: Final = (
    Parameter("backup-type", BACKUP_TYPE),
    Parameter("backup-id", Text(SAFE_ID_PATTERN, 255)),
)
NS: Final = Parameter("ns", NAMESPACE, is_optional=True)
BACKUP: Final = (*GROUP, Parameter("backup-time", Integer(1, (1 << 63) - 1)))


def check_parameters(
    request: Request, schema: Sequence[Parameter], *, is_upload: bool = False
) -> dict[str, Any]:
    """The parameters of a request, each read by its shape; absent optional ones are left out.

    Raises:
        ApiError: 400 that names every parameter that is missing, unknown or wrong.
    """
    found = read_parameters(request, is_upload=is_upload)
    return read_set(found, schema)


def read_set(found: Mapping[str, Any], schema: Sequence[Parameter]) -> dict[str, Any]:
    """As `check_parameters`, of parameters that were read before."""
    known = {parameter.name: parameter for parameter in schema}
    values: dict[str, Any] = {}
    complaints: list[tuple[str, str]] = []
    for name, value in found.items():
        if name not in known:
            complaints.append((name, "schema does not allow additional properties."))
            continue
        try:
            values[name] = known[name].shape.read(value)
        except ValueError as error:
            complaints.append((name, str(error)))
    for parameter in schema:
        if parameter.name not in found and not parameter.is_optional:
            complaints.append((parameter.name, "parameter is missing and it is not optional."))
    if complaints:
        raise ApiError(_render(complaints))
    return values


def _render(complaints: Sequence[tuple[str, str]]) -> str:
    if len(complaints) == 1:
        name, text = complaints[0]
        return f"parameter verification failed - '{name}': {text}"
    lines = [f"- '{name}': {text}\n" for name, text in complaints]
    return "parameter verification failed:\n" + "".join(lines)
