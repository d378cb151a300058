"""The tool on a thin volume of LVM: a real device mapper, in a guest that has one."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from integration.conftest import Surroundings
from integration.guest import NoGuest
from integration.lvm_thin.in_guest import MIB, VOLUME_MIB
from integration.lvm_thin.machine import build_lvm_guest

_FACT = re.compile(r"^FACT (\S+) (\S+)\r?$", re.MULTILINE)


@pytest.fixture(scope="module")
def facts(machine: Surroundings) -> Iterator[Mapping[str, str]]:
    """What the guest told of its one run."""
    with tempfile.TemporaryDirectory(prefix="vzl-", dir="/tmp") as name:
        try:
            guest = build_lvm_guest(machine, Path(name))
        except NoGuest as error:
            pytest.skip(f"NOT covered: {error}")
        told = guest.run(Path(name))
        assert "ENDED 0" in told, told
        yield dict(_FACT.findall(told))


def test_archive_holds_what_the_thin_volume_holds(facts: Mapping[str, str]) -> None:
    assert facts["size"] == str(VOLUME_MIB * MIB)
    for name in ("offline", "whole", "equal", "map-line"):
        assert facts[name] == "True", name


def test_thin_volume_is_only_read(facts: Mapping[str, str]) -> None:
    """Not a sector of it was written, nor did reading its holes map any of the pool's."""
    assert facts["volume-equal"] == "True"
    assert facts["mapped-before"] == facts["mapped-after"]
    assert int(facts["mapped-before"]) < VOLUME_MIB * MIB // 512
    assert facts["written-during-backup"] == "0"


def test_row_5_3_inactive_volume_is_refused_and_left_inactive(facts: Mapping[str, str]) -> None:
    for name in ("gone", "refused", "still-inactive", "unknown"):
        assert facts[name] == "True", name
