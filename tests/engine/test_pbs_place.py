"""When a backup is made, by a server's last one: names have whole seconds, and only go up."""

from __future__ import annotations

import pytest

from tests.engine.pbs_world import STORAGE_ID, PbsWorld
from vzdump_qemu.events import BackupMode
from vzdump_qemu.formats.pbs import BackupGroup
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.plan.options import BackupOptions, TargetOptions
from vzdump_qemu.stores.pbs.uploads import ClientUploads


class Dated(ClientUploads):
    """A server whose last backup is of another time than this."""

    age_s = 0

    async def last_time_s(self, target: PbsTarget, group: BackupGroup) -> int:
        return int(self._clock.wall_s()) - self.age_s


class InThisSecond(Dated):
    pass


class YetToCome(Dated):
    age_s = -3600


def test_backup_in_the_second_of_the_last_one_waits_for_the_next_second() -> None:
    world = PbsWorld(uploads_class=InThisSecond)
    world.assert_stored(world.run())


@pytest.mark.parametrize("mode", list(BackupMode))
def test_clock_behind_the_last_backup_is_told_before_the_guest_is_touched(
    mode: BackupMode,
) -> None:
    world = PbsWorld(
        uploads_class=YetToCome,
        options=BackupOptions(target=TargetOptions(storage_id=STORAGE_ID), mode=mode),
    )
    result = world.run()
    assert result is not None
    assert "backup timestamp is older than last backup (" in str(result.error)
    assert world.node.lock_log == []
    assert "FreezeIssued" not in world.names()
