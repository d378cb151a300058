"""Argument cases made from a schema: what its program takes, and what it must refuse.

Made by walking the schema, independently of how `fakeqmp.qapi` checks arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vzsim.fakeqmp.qapi import Entry, QapiSchema

_DEPTH_MAX = 6
_UNKNOWN_NAME = "x-not-in-any-schema"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgumentCase:
    """Arguments of one command, and what becomes of them.

    Attributes:
        refusal: the begin of the error text; empty if they are taken.
        about: what makes this case.
    """

    arguments: Mapping[str, Any]
    refusal: str
    about: str


def argument_cases(schema: QapiSchema, command: str) -> Iterator[ArgumentCase]:
    """Cases for one command: least, each member and variant, and each way to be wrong."""
    entry = schema.type_of(schema.commands[command]["arg-type"])
    for case, least in _least_values(schema, entry):
        yield ArgumentCase(arguments=least, refusal="", about=f"least{case}")
        yield ArgumentCase(
            arguments={**least, _UNKNOWN_NAME: 1},
            refusal=f"Parameter '{_UNKNOWN_NAME}' is unexpected",
            about=f"unknown member{case}",
        )
        for member in schema.members_of(entry, least):
            if member["name"] == entry.get("tag"):
                continue
            yield from _member_cases(schema, member, least, case)


def _member_cases(
    schema: QapiSchema, member: Entry, least: Mapping[str, Any], case: str
) -> Iterator[ArgumentCase]:
    name, type_name = member["name"], member["type"]
    without = {key: value for key, value in least.items() if key != name}
    if "default" not in member:
        yield ArgumentCase(
            arguments=without, refusal=f"Parameter '{name}' is missing", about=f"without {name}"
        )
    elif type_name != "any":
        yield ArgumentCase(
            arguments={**least, name: _sample(schema, type_name)},
            refusal="",
            about=f"with {name}{case}",
        )
    entry = schema.type_of(type_name)
    if type_name == "any":
        return
    yield ArgumentCase(
        arguments={**without, name: 1.5 if entry.get("json-type") != "number" else "1.5"},
        refusal=f"Invalid parameter type for '{name}', expected: ",
        about=f"{name} of a wrong type",
    )
    if entry["meta-type"] == "enum":
        for value in entry["values"] if not case else ():
            yield ArgumentCase(
                arguments={**least, name: value}, refusal="", about=f"{name} {value}"
            )
        yield ArgumentCase(
            arguments={**least, name: _UNKNOWN_NAME},
            refusal=f"Parameter '{name}' does not accept value '{_UNKNOWN_NAME}'",
            about=f"{name} of an unknown value",
        )
    if entry["meta-type"] == "array":
        yield ArgumentCase(
            arguments={**least, name: [_sample(schema, entry["element-type"])] * 2},
            refusal="",
            about=f"{name} with two elements",
        )


def _least_values(schema: QapiSchema, entry: Entry) -> Iterator[tuple[str, dict[str, Any]]]:
    """The mandatory members, once for each variant, with a word about which."""
    if "tag" not in entry:
        yield "", _sample_object(schema, entry, {}, 0)
        return
    [tag] = [member for member in entry["members"] if member["name"] == entry["tag"]]
    for value in schema.type_of(tag["type"])["values"]:
        chosen = {entry["tag"]: value}
        yield f" ({value})", _sample_object(schema, entry, chosen, 0)


def _sample_object(
    schema: QapiSchema, entry: Entry, chosen: Mapping[str, Any], depth: int
) -> dict[str, Any]:
    if "tag" in entry and not chosen:
        [tag] = [member for member in entry["members"] if member["name"] == entry["tag"]]
        values = schema.type_of(tag["type"])["values"]
        # Drivers that need others below would nest without end.
        chosen = {entry["tag"]: "file" if "file" in values else values[0]}
    return {
        member["name"]: chosen[member["name"]]
        if member["name"] in chosen
        else _sample(schema, member["type"], depth + 1)
        for member in schema.members_of(entry, chosen)
        if "default" not in member
    }


def _sample(schema: QapiSchema, type_name: str, depth: int = 0) -> Any:
    """A value of a type."""
    entry = schema.type_of(type_name)
    match entry["meta-type"]:
        case "builtin":
            samples = {"string": "x", "int": 1, "number": 1.5, "boolean": True, "null": None}
            return samples.get(entry["json-type"], "anything")
        case "enum":
            return entry["values"][0]
        case "array":
            return [] if depth > _DEPTH_MAX else [_sample(schema, entry["element-type"], depth + 1)]
        case "alternate":
            return _sample(schema, entry["members"][0]["type"], depth + 1)
        case _:
            return _sample_object(schema, entry, {}, depth)
