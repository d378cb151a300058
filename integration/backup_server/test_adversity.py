"""A server that fails while a real guest is backed up to it.

The first cause is told, the guest is as it was and never waited, and the server shows no backup
that is not whole.
"""

from __future__ import annotations

import asyncio
import re
import time

import pytest

from integration.backup_server.conftest import PbsLab, fill
from vzdump_qemu.units import MIB
from vzsim.fakepbs import Fault, FaultKind

# What one write of a guest under emulation may take on a busy machine, whatever the server does.
WRITE_S_MAX = 5.0


@pytest.fixture
async def ready(pbs_lab: PbsLab) -> PbsLab:
    """A running VM that was not backed up yet."""
    pbs_lab.lab.create("--no-agent", "--disk", "scsi0=48M")
    fill(pbs_lab.lab.image(), 0, 48 * MIB)
    pbs_lab.write_storage()
    await pbs_lab.must("lab", "start", pbs_lab.lab.root, 100)
    return pbs_lab


async def _assert_unharmed(pbs_lab: PbsLab) -> None:
    """Nothing is left anywhere, and the next backup is whole."""
    assert await pbs_lab.backups() == []
    pbs_lab.assert_let_go()
    pbs_lab.served.pbs.faults.heal()
    await pbs_lab.back_up()
    assert (await pbs_lab.restored())["drive-scsi0"] == pbs_lab.image_bytes()


# What a server said last may be lost: its end takes what was not read yet.
_GONE = "server ended the|Connection reset by peer"


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault(kind=FaultKind.CUT, endpoint="GET /backup", bytes=20 * MIB), "server"),
        (Fault(kind=FaultKind.GOAWAY, endpoint="POST /fixed_chunk", first=4), _GONE),
        (Fault(kind=FaultKind.RESET, endpoint="POST /fixed_chunk", first=4), "broke off a request"),
        (Fault(kind=FaultKind.DISK_FULL, endpoint="POST /fixed_index", bytes=9 * MIB), "No space"),
        (Fault(kind=FaultKind.REPLY, endpoint="GET /backup", status=400), "internal error"),
    ],
    ids=lambda value: value.kind.value if isinstance(value, Fault) else "",
)
async def test_server_that_fails_meanwhile_is_told_as_the_cause(
    ready: PbsLab, fault: Fault, told: str
) -> None:
    ready.served.pbs.faults.add(fault)
    log = await ready.back_up(code=255)
    assert re.search(told, log) and "by us" not in log and "point in time" not in log
    ready.served.pbs.fill(None)
    await _assert_unharmed(ready)


async def test_answer_to_finish_that_is_lost_is_asked_for_again(ready: PbsLab) -> None:
    # The server has carried it out: the backup is there, and the operator hears why that is known.
    ready.served.pbs.faults.add(Fault(kind=FaultKind.GOAWAY, endpoint="POST /finish"))
    log = await ready.back_up(code=255)
    assert "server ended the connection" in log
    await _assert_unharmed(ready)


async def test_guest_never_waits_for_a_server_that_takes_nothing(ready: PbsLab) -> None:
    ready.served.pbs.faults.add(Fault(kind=FaultKind.SLOW, endpoint="GET /backup", bytes=4 * MIB))
    before = ready.image_bytes()
    backup = asyncio.ensure_future(ready.back_up())
    while not ready.served.pbs.counters.requests["POST /fixed_chunk"]:
        await asyncio.sleep(0.05)
    for offset_bytes in range(0, 48 * MIB, 2 * MIB):
        began_s = time.monotonic()
        await ready.write("scsi0", offset_bytes, 4096)
        assert time.monotonic() - began_s < WRITE_S_MAX
    assert not backup.done()
    await backup
    assert (await ready.restored())["drive-scsi0"] == before
    ready.assert_let_go()


async def test_interrupt_ends_a_backup_to_a_server_that_does_not_answer(ready: PbsLab) -> None:
    ready.served.pbs.faults.add(Fault(kind=FaultKind.HANG, endpoint="POST /fixed_chunk", count=0))
    words = ("timeout", "--signal=TERM", "4", "vzdump-qemu", "--root", str(ready.lab.root), "100")
    process = await asyncio.create_subprocess_exec(*words, "--storage", "pbs1")
    began_s = time.monotonic()
    await asyncio.wait_for(process.wait(), 30)
    assert time.monotonic() - began_s < 20
    await _assert_unharmed(ready)


async def _other_certificate(pbs_lab: PbsLab) -> str:
    pbs_lab.served.change_certificate()
    return "fingerprint"


async def _revoked_token(pbs_lab: PbsLab) -> str:
    pbs_lab.served.pbs.accounts.revoke(str(pbs_lab.served.repository.auth_id))
    return "authentication failed"


async def _gone_server(pbs_lab: PbsLab) -> str:
    await pbs_lab.served.listener.close()
    return "unable to connect to"


async def _lost_key(pbs_lab: PbsLab) -> str:
    pbs_lab.write_storage(**{"encryption-key": "1"})
    return "no encryption key file found"


@pytest.mark.parametrize("spoil", [_other_certificate, _revoked_token, _gone_server, _lost_key])
async def test_server_that_is_not_to_be_used_is_refused_before_the_guest(
    ready: PbsLab, spoil: object
) -> None:
    told = await spoil(ready)  # type: ignore[operator]
    log = await ready.back_up(code=255)
    assert told in log and "Starting Backup of VM" not in log
    assert ready.served.pbs.counters.backup_count == 0
    ready.assert_let_go()
