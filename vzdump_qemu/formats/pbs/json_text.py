"""JSON as PBS writes it, and JSON from strangers within bounds.

Owns the two renderings (canonical for signatures, indented for people) and the limits on size and
depth; what the members mean is left to `manifest` and `key_file`. Source: PBS formats, section 8.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

from vzdump_qemu.errors import PbsCorrupt
from vzdump_qemu.formats.pbs.layout import Buffer

# The deepest member that any version writes is the fourth level.
DEPTH_COUNT_MAX: Final = 32

_Shape = TypeVar("_Shape")


def decode_json(raw: Buffer, shape: type[_Shape], *, bytes_max: int, what: str) -> _Shape:
    """Read one JSON value of a known shape.

    Args:
        bytes_max: longer texts are refused unread; a value takes up to 50 times that in memory.
        what: names the text in errors.

    Raises:
        PbsCorrupt: too long, nested too deeply, no JSON, or another shape.
    """
    if len(raw) > bytes_max:
        raise PbsCorrupt(f"{what} is too long ({len(raw)} bytes > {bytes_max})")
    try:
        return msgspec.json.decode(raw, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PbsCorrupt(f"unable to parse {what}: {error}") from error
    except RecursionError as error:
        raise PbsCorrupt(f"{what} is nested too deeply") from error


def check_depth(value: object, *, what: str) -> None:
    """Raise PbsCorrupt where lists and objects are nested deeper than `DEPTH_COUNT_MAX`."""
    level: list[object] = [value]
    for _ in range(DEPTH_COUNT_MAX):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return
    raise PbsCorrupt(f"{what} is nested too deeply")


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """The one rendering of a value that is signed: sorted keys, no white space."""
    try:
        return json.dumps(
            value, separators=(",", ":"), sort_keys=True, ensure_ascii=False, allow_nan=False
        ).encode()
    except ValueError as error:
        raise PbsCorrupt(f"JSON cannot hold this: {error}") from error


def indented_json(value: Mapping[str, Any]) -> bytes:
    """The rendering of a manifest: sorted keys, two spaces."""
    # In two steps, as the standard library indents in Python alone.
    return msgspec.json.format(canonical_json(value), indent=2)
