"""Property strings: ``key=value,key=value`` with one default key, as Proxmox VE writes them.

Owns the common grammar, booleans and sizes. Which keys there are and what they mean is left to
the format that uses the string. Source: host behaviour, sections 1.1, 2.3 and 3.5.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import assert_never

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.units import GIB, KIB, MIB, TIB

_TRUE_WORDS = frozenset(("1", "on", "yes", "true"))
_FALSE_WORDS = frozenset(("0", "off", "no", "false"))
_SIZE = re.compile(r"([0-9]{1,30}(?:\.[0-9]{1,30})?)([KMGT](?:iB)?)?")
_UNIT_BYTES = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
# Longer than any count that occurs, and far below the limit of int().
_INTEGER = re.compile(r"-?[0-9]{1,30}")


class PropertyKind(enum.Enum):
    """What the value of one key is turned into."""

    TEXT = "string"
    INTEGER = "integer"
    BOOLEAN = "boolean"


@dataclass(frozen=True, slots=True, kw_only=True)
class PropertySchema:
    """Which keys a property string may have.

    Attributes:
        keys: kind by key.
        default_key: the key of a part without ``=``; None if there must be none.
        aliases: other names of keys, mapped before anything is checked.
    """

    keys: Mapping[str, PropertyKind]
    default_key: str | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)


def parse_boolean(text: str) -> bool:
    """Read ``1/0/on/off/yes/no/true/false`` in any case. Raises ConfigError for other words."""
    word = text.lower()
    if word in _TRUE_WORDS:
        return True
    if word in _FALSE_WORDS:
        return False
    raise ConfigError(
        f"type check ('boolean') failed - got '{text}'", hint="use 1/0, on/off, yes/no, true/false"
    )


def parse_integer(text: str) -> int:
    """Read a decimal integer, sign allowed. Raises ConfigError for anything else."""
    if _INTEGER.fullmatch(text) is None:
        raise ConfigError(f"type check ('integer') failed - got '{text}'")
    return int(text)


def parse_size(text: str) -> int:
    """Read a disk size like ``32G``, ``1.5T`` or ``528KiB`` (factor 1024) as bytes.

    A fraction of a byte is cut off. Raises ConfigError for anything else.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConfigError(f"value does not look like a valid disk size: {text}")
    unit_bytes = _UNIT_BYTES[(match[2] or "")[:1]]
    if match[1].isdigit():
        return int(match[1]) * unit_bytes
    return int(Fraction(match[1]) * unit_bytes)


def split_property_string(text: str, schema: PropertySchema) -> dict[str, str]:
    """Split into raw values by key, in their order; keys are checked, values are not.

    Raises: ConfigError for a duplicate, unknown or missing key.
    """
    values: dict[str, str] = {}
    for part in text.split(","):
        if not part.strip():
            continue
        name, has_key, value = part.partition("=")
        if not has_key:
            if schema.default_key is None:
                raise ConfigError("value without key, but schema does not define a default key")
            name, value = schema.default_key, part
        if not name or not value:
            raise ConfigError("missing key in comma-separated list property")
        key = schema.aliases.get(name, name)
        if key in values:
            raise ConfigError(f"duplicate key in comma-separated list property: {key}")
        if key not in schema.keys:
            raise ConfigError(f"invalid key in comma-separated list property: {key}")
        values[key] = value
    return values


def parse_property_string(text: str, schema: PropertySchema) -> dict[str, str | int | bool]:
    """Read a property string into values of the kinds that its schema names.

    Raises: ConfigError as `split_property_string` does, or for a value of the wrong kind.
    """
    return convert_properties(split_property_string(text, schema), schema)


def convert_properties(
    raw: Mapping[str, str], schema: PropertySchema
) -> dict[str, str | int | bool]:
    """Values of the kinds that the schema names, of what `split_property_string` found.

    Raises: ConfigError for a value of the wrong kind.
    """
    values: dict[str, str | int | bool] = {}
    for key, value in raw.items():
        try:
            values[key] = _convert(value, schema.keys[key])
        except ConfigError as error:
            raise ConfigError(f"{key}: {error.message}", hint=error.hint) from None
    return values


def _convert(value: str, kind: PropertyKind) -> str | int | bool:
    match kind:
        case PropertyKind.TEXT:
            return value
        case PropertyKind.INTEGER:
            return parse_integer(value)
        case PropertyKind.BOOLEAN:
            return parse_boolean(value)
        case _:
            assert_never(kind)
