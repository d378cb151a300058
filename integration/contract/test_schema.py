"""The schemas that the simulator ships are those that the real programs tell."""

from __future__ import annotations

import pytest

from integration.contract.reals import REALS
from tests.contract.subject import Client
from vzsim.check_schema import check_dialect
from vzsim.fakeqmp.qapi import QapiSchema
from vzsim.fakeqmp.schema import Dialect, schema_of


@pytest.mark.parametrize(
    ("name", "dialect"),
    [("real-qemu", Dialect.UPSTREAM), ("real-storage-daemon", Dialect.STORAGE_DAEMON)],
)
def test_simulator_held_against_what_the_real_program_tells_has_no_deviation(
    name: str, dialect: Dialect
) -> None:
    offer = REALS[name]
    if offer.missing:
        pytest.skip(offer.missing)
    with offer.make() as subject:
        told = QapiSchema(Client(subject.open_monitor()).ask("query-qmp-schema"))
    assert check_dialect(dialect, told).deviations == []
    assert told.commands.keys() == schema_of(dialect).commands.keys()
    assert told.events.keys() == schema_of(dialect).events.keys()
