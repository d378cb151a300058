"""A QAPI schema as ``query-qmp-schema`` tells it, and what it says about values.

Owns reading the recorded schemas, the check of a command's arguments with the texts of QEMU's input
visitor, and the search for what in a reply or an event contradicts the schema. Which dialect has
which schema is left to `schema`. Source: QEMU's own replies; texts: recorded sessions, and asked of
QEMU 7.2.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

import zstandard

from vzsim.fakeqmp.wire import Constant

Entry = Mapping[str, Any]

_NAMELESS = "null"
_WORDS = {
    "string": "string", "int": "integer", "number": "number", "boolean": "boolean",
    "null": "null", "object": "object", "array": "array",
}  # fmt: skip
# Introspection hides how wide an integer is; these are told apart by an error of their own.
_UINT32_MEMBERS = ("granularity", "max-connections")
_UINT32_MAX = 2**32 - 1


class ValueRefused(Exception):
    """A value that the input visitor does not take; the text is QEMU's."""


class QapiSchema:
    """Commands, events and types of one program.

    Args:
        entries: the list that ``query-qmp-schema`` returns.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self._types: dict[str, Entry] = {}
        self._kinds: dict[str, str] = {}
        # Commands that were seen to be content without arguments, as most are sent.
        self._takes_none: set[str] = set()
        self.commands: dict[str, Entry] = {}
        self.events: dict[str, Entry] = {}
        for entry in entries:
            match entry["meta-type"]:
                case "command":
                    self.commands[entry["name"]] = entry
                case "event":
                    self.events[entry["name"]] = entry
                case _:
                    self._types[entry["name"]] = entry
                    self._kinds[entry["name"]] = _json_kind_of(entry)

    @classmethod
    def shipped(cls, name: str) -> QapiSchema:
        """One of the recorded schemas that come with the package."""
        packed = (files(__package__) / "schemas" / f"schema-{name}.json.zst").read_bytes()
        text = zstandard.ZstdDecompressor().stream_reader(packed).read()
        return cls(Constant(json.loads(text)))

    def type_of(self, name: str) -> Entry:
        """A type by its masked name."""
        return self._types[name]

    def members_of(self, entry: Entry, value: Mapping[str, Any]) -> Iterator[Entry]:
        """Members of an object in QEMU's order; those of the variant that `value` chooses last."""
        yield from entry["members"]
        if "tag" in entry:
            wanted = value.get(entry["tag"])
            for variant in entry["variants"]:
                if variant["case"] == wanted:
                    yield from self.members_of(self._types[variant["type"]], value)

    def every_member_of(self, entry: Entry) -> Iterator[Entry]:
        """Members of an object and of all its variants."""
        yield from entry["members"]
        for variant in entry.get("variants", []):
            yield from self.every_member_of(self._types[variant["type"]])

    # -- arguments -----------------------------------------------------------------------------

    def check_arguments(self, command: str, arguments: Mapping[str, Any]) -> None:
        """Check a command's arguments as the input visitor does: in order, the first error counts.

        Raises: ValueRefused.
        """
        if not arguments and command in self._takes_none:
            return
        self._visit_object(self._types[self.commands[command]["arg-type"]], arguments, "")
        if not arguments:
            self._takes_none.add(command)

    def _visit_object(self, entry: Entry, value: Mapping[str, Any], path: str) -> None:
        prefix = f"{path}." if path else ""
        given_count = 0
        # Most have no variants, and need nothing but a look at what there is.
        members = self.members_of(entry, value) if "tag" in entry else entry["members"]
        for member in members:
            name = member["name"]
            if name in value:
                given_count += 1
                self._visit(member["type"], value[name], name, prefix + name)
            elif "default" not in member:
                raise ValueRefused(f"Parameter '{prefix}{name}' is missing")
        if given_count < len(value):
            known = {member["name"] for member in self.members_of(entry, value)}
            unknown = next(name for name in value if name not in known)
            raise ValueRefused(f"Parameter '{prefix}{unknown}' is unexpected")

    def _visit(self, type_name: str, value: Any, name: str, path: str) -> None:
        entry = self._types[type_name]
        kind = self._kinds[type_name]
        if kind == "value":
            return
        if entry["meta-type"] == "alternate":
            chosen = self._alternative(entry, value)
            if chosen is None:
                wanted = self._alternate_name(entry)
                raise ValueRefused(f"Invalid parameter type for '{name}', expected: {wanted}")
            self._visit(chosen, value, name, path)
            return
        if not _is_of_kind(value, kind):
            raise ValueRefused(f"Invalid parameter type for '{path}', expected: {_WORDS[kind]}")
        match entry["meta-type"]:
            case "enum":
                if value not in entry["values"]:
                    raise ValueRefused(f"Parameter '{name}' does not accept value '{value}'")
            case "array":
                for index, element in enumerate(value):
                    self._visit(entry["element-type"], element, _NAMELESS, f"{path}[{index}]")
            case "object":
                self._visit_object(entry, value, path)
        if name in _UINT32_MEMBERS and kind == "int" and not 0 <= value <= _UINT32_MAX:
            raise ValueRefused(f"Parameter '{name}' expects uint32_t")

    def _alternative(self, entry: Entry, value: Any) -> str | None:
        for member in entry["members"]:
            if _is_of_kind(value, self._kinds[member["type"]]):
                return str(member["type"])
        return None

    def _alternate_name(self, entry: Entry) -> str:
        """Introspection hides the names of types; error texts show those of alternates."""
        types = [self._types[member["type"]] for member in entry["members"]]
        kinds = {self._kinds[member["type"]] for member in entry["members"]}
        if kinds == {"string", "null"}:
            return "StrOrNull"
        if "enum" in (each["meta-type"] for each in types):
            return "Qcow2OverlapChecks"
        if any("tag" in each for each in types):
            return "BlockdevRefOrNull" if "null" in kinds else "BlockdevRef"
        return "BlockDirtyBitmapOrStr" if "object" in kinds else "StatsValue"

    # -- replies and events --------------------------------------------------------------------

    def deviations(self, type_name: str, value: Any, where: str) -> Iterator[str]:
        """What in a value that was sent contradicts its type; nothing if all is well.

        Args:
            where: how the value is called in the texts.
        """
        entry = self._types[type_name]
        kind = self._kinds[type_name]
        if kind == "value":
            return
        if entry["meta-type"] == "alternate":
            chosen = self._alternative(entry, value)
            if chosen is None:
                yield f"{where}: no alternative takes {_shown(value)}"
            else:
                yield from self.deviations(chosen, value, where)
        elif not _is_of_kind(value, kind):
            yield f"{where}: {_shown(value)} is no {_WORDS[kind]}"
        elif entry["meta-type"] == "enum":
            if value not in entry["values"]:
                yield f"{where}: unknown value {_shown(value)}"
        elif entry["meta-type"] == "array":
            for index, element in enumerate(value):
                yield from self.deviations(entry["element-type"], element, f"{where}[{index}]")
        elif entry["meta-type"] == "object":
            yield from self._object_deviations(entry, value, where)

    def _object_deviations(
        self, entry: Entry, value: Mapping[str, Any], where: str
    ) -> Iterator[str]:
        known = {member["name"]: member for member in self.members_of(entry, value)}
        for name, member in known.items():
            if name in value:
                yield from self.deviations(member["type"], value[name], f"{where}.{name}")
            elif "default" not in member:
                yield f"{where}: member '{name}' is missing"
        for name in value:
            if name not in known:
                yield f"{where}: member '{name}' is unknown"


def _json_kind_of(entry: Entry) -> str:
    match entry["meta-type"]:
        case "builtin":
            return str(entry["json-type"])
        case "enum":
            return "string"
        case kind:
            return str(kind)


def _is_of_kind(value: Any, kind: str) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        # bool is a subclass of int in Python, not in QAPI.
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "null":
            return value is None
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
        case _:
            return kind == "value"


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
