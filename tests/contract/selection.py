"""Which subject is asked which behaviour: by features, said aloud, never by skipping.

A behaviour whose features no subject of a place has does not appear there at all; the report header
tells what each subject shows and what it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from tests.contract.subject import Feature, features_needed

# Their asserts shall speak as those of tests do, wherever they are asked from.
BEHAVIOUR_MODULES = tuple(
    f"tests.contract.{name}"
    for name in ("agents", "bitmaps", "blocks", "exports", "jobs", "machine", "nodes", "protocol")
)


@dataclass(frozen=True)
class Offer:
    """A subject that can be made.

    Attributes:
        missing: why it cannot be made here; empty if it can.
    """

    features: frozenset[Feature]
    make: Callable[[], AbstractContextManager[Any]]
    missing: str = ""


def ask_subjects(
    metafunc: pytest.Metafunc,
    offers: Mapping[str, Offer],
    *,
    fixture: str = "subject",
    scope: Literal["function", "session"] = "function",
) -> None:
    """Ask every subject that has what the test needs; for use in ``pytest_generate_tests``."""
    if fixture not in metafunc.fixturenames:
        return
    needed = features_needed(metafunc.function)
    names = [
        pytest.param(name, marks=pytest.mark.skip(offer.missing)) if offer.missing else name
        for name, offer in offers.items()
        if needed <= offer.features
    ]
    metafunc.parametrize(fixture, names, indirect=True, scope=scope)


def subject_fixture(
    offers: Mapping[str, Offer], *, scope: Literal["function", "session"] = "function"
) -> Any:
    """The fixture that makes the subject asked for by `ask_subjects`, and ends it."""

    @pytest.fixture(scope=scope)
    def made(request: pytest.FixtureRequest) -> Iterator[Any]:
        with offers[request.param].make() as subject:
            yield subject

    return made


def header_lines(offers: Mapping[str, Offer]) -> list[str]:
    """One line per subject for the report header."""
    lines = []
    for name, offer in offers.items():
        lacks = [
            feature.value
            for feature in Feature
            # Agents have no features to choose from.
            if offer.features and feature not in offer.features
        ]
        text = f"NOT covered: {offer.missing}" if offer.missing else "covered"
        without = f", but for: {'; '.join(lacks)}" if lacks and not offer.missing else ""
        lines.append(f"contract, {name}: {text}{without}")
    return lines
