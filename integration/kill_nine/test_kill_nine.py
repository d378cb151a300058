"""SIGKILL of the tool at random moments: the guest hardly notices, and nothing is left."""

from __future__ import annotations

from integration.conftest import MakeGuest
from integration.kill_nine.killing import kill_backups

COUNT = 6
SEED = 9
# Other tests, and other people, may be using the CPUs; the command holds it to one second.
THAWED_WITHIN_S = 5.0


def test_killed_backups_are_put_back_and_the_next_ones_are_good(make_guest: MakeGuest) -> None:
    guest = make_guest()
    guest.start()
    kills = kill_backups(guest, count=COUNT, seed=SEED, tell=print, thawed_within_s=THAWED_WITHIN_S)
    assert sum(kill.was_in_time for kill in kills) >= COUNT / 2
