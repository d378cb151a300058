"""QEMU or the guest's agent dies during the backup."""

from __future__ import annotations

import os
import signal

import pytest

from integration.conftest import MakeGuest
from integration.scenario import SLOW, WritingGuest, wait_until

NO_AGENT = "/run/no-agent"
KILL_WHEN_FROZEN = "/run/kill-when-frozen"
THAWED_WITHIN_S = 10.0


@pytest.fixture(scope="module")
def guest(make_guest: MakeGuest) -> WritingGuest:
    """One guest for all of these tests; each leaves it running, with its agent."""
    guest = make_guest()
    guest.start()
    return guest


def _await_agent(guest: WritingGuest, before: int) -> None:
    wait_until(lambda: guest.told().count("AGENT /dev") > before, "the agent's next start")


def test_agent_that_died_before_costs_the_freeze_only(guest: WritingGuest) -> None:
    starts = guest.told().count("AGENT /dev")
    guest.ask(f"touch {NO_AGENT}; killall -9 qemu-ga; sleep 0.2")
    backup = guest.backup()
    assert "fs-thaw" not in backup.log
    backup.judge(frozen=False)
    guest.wait_writes()
    guest.assert_let_go()
    guest.ask(f"rm {NO_AGENT}")
    _await_agent(guest, starts)


def test_backup_ended_while_it_waits_for_a_killed_agent_thaws_the_guest(
    guest: WritingGuest,
) -> None:
    starts = guest.told().count("AGENT /dev")
    guest.ask(f"touch {KILL_WHEN_FROZEN}")
    with guest.starting_backup() as backup:
        _await_agent(guest, starts)
        # The answer to the freeze died with the agent; nobody but the operator is as impatient.
        backup.process.send_signal(signal.SIGTERM)
        guest.wait_writes(limit_s=THAWED_WITHIN_S)
        assert backup.process.stderr is not None
        backup.lines += backup.process.stderr.readlines()
        assert backup.process.wait() != 0
    assert not backup.archive().exists()
    guest.assert_let_go()
    guest.backup().judge(frozen=True)


def test_death_of_qemu_is_told_and_nothing_is_left(guest: WritingGuest) -> None:
    with guest.backing_up(*SLOW) as backup:
        os.kill(guest.qemu_pid(), signal.SIGKILL)
        backup.wait(255)
    assert "VM 100 not running: QEMU ended during the backup" in backup.log
    assert not backup.archive().exists()
    guest.assert_nothing_left()
    guest.start()
    [verdict] = guest.verdicts()
    assert verdict.startswith("VERIFY OK"), verdict
    guest.backup().judge(frozen=True)
