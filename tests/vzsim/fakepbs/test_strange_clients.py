"""Clients that break the protocol end their own connection and nothing else."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.vzsim.fakepbs.raw_client import (
    BACKUP_PROTOCOL,
    backup_target,
    upgrade,
)
from vzsim.fakepbs import FakePbs, PbsConfig, PbsSurroundings
from vzsim.pytest_plugin import Simulation

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes.fromhex("000000040000000000")


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags])
    return head + stream_id.to_bytes(4, "big") + payload


frames = st.builds(
    frame,
    st.integers(0, 10),
    st.integers(0, 255),
    st.integers(0, 9),
    st.binary(max_size=40),
)
streams_of_bytes = st.one_of(
    st.binary(max_size=200),
    st.lists(frames, max_size=8).map(lambda found: PREFACE + SETTINGS + b"".join(found)),
)


@pytest.mark.slow
@given(data=streams_of_bytes)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_behind_the_upgrade_leave_no_backup_and_no_lock(data: bytes) -> None:
    async def run() -> None:
        chance = random.Random(1).randbytes
        pbs = FakePbs(PbsConfig(), PbsSurroundings(now_s=lambda: 1_700_000_100.0, chance=chance))
        streams, task = pbs.connect()
        answer = await upgrade(streams, backup_target(), BACKUP_PROTOCOL)
        assert answer.status == 101
        streams[1].write(data)
        streams[1].close()
        await task
        datastore = pbs.datastores["tank"]
        assert datastore.files.names("vm/100") == ["owner"]
        assert datastore.locks.held_paths() == []
        assert pbs.session_count == 0

    Simulation().run(run())
