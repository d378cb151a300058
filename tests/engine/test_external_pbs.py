"""Backups at a server without a backup job: disk-less VMs, and templates where asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.engine.pbs_world import REPOSITORY, SECRET, STORAGE_ID, TARGET, PbsWorld
from vzdump_qemu import events
from vzdump_qemu.errors import PbsCorrupt
from vzdump_qemu.formats.pbs import Fingerprint, Namespace
from vzdump_qemu.pbs_ports import DiskSize, PbsFinished
from vzdump_qemu.plan.options import BackupOptions, DataPathChoice, TargetOptions
from vzdump_qemu.secret import Secret
from vzdump_qemu.stores.pbs.uploads import ClientUploads
from vzsim.fakepbs import Fault, FaultKind

OPTIONS = BackupOptions(target=TargetOptions(storage_id=STORAGE_ID))
EMPTY: dict[str, Any] = {"config": "name: empty\n", "images": {}, "state": None}
TEMPLATE: dict[str, Any] = {
    "config": "name: t\nscsi0: local:100/vm-100-disk-0.raw,size=8M\ntemplate: 1\n",
    "state": None,
    "options": replace(OPTIONS, data_path=DataPathChoice.EXTERNAL),
}
DIRECTORY = "/var/tmp/vzdumptmp4242_100"
PROGRAM = "proxmox-backup-client"


class Uploads(ClientUploads):
    """Knows the server, and takes the client program's word for what it holds."""

    asked: list[tuple[list[DiskSize], list[str]]]

    async def check(self, target: Any) -> None:
        return

    async def last_time_s(self, target: Any, group: Any) -> int:
        return 0

    async def prove(
        self, target: Any, backup: Any, disks: Sequence[DiskSize], config_names: Sequence[str]
    ) -> PbsFinished:
        Uploads.asked.append((list(disks), list(config_names)))
        return PbsFinished(backup_id="id", size_bytes=700, sent_bytes=300)


class Doubtful(Uploads):
    """A server that does not hold what the program said to have sent."""

    async def prove(self, *_: Any) -> PbsFinished:
        raise PbsCorrupt("backup lacks file 'qemu-server.conf.blob'")


def _world(*, status: int = 0, line: str = "Duration: 0.1s", **changes: Any) -> PbsWorld:
    Uploads.asked = []
    world = PbsWorld(**{"uploads_class": Uploads, "options": OPTIONS, **changes})

    async def back_up(argv: Sequence[str], _: tuple[int, ...]) -> tuple[int, Sequence[str]]:
        return status, (line,)

    world.commands.programs[PROGRAM] = back_up
    return world


def test_disk_less_vm_is_sent_by_the_platforms_client() -> None:
    world = _world(**EMPTY)
    result = world.run()
    assert result is not None and result.error is None, result
    time_s = str(int(result.archive_path and world.told_of(events.RunStarted)[0].wall_s))
    assert world.commands.calls[-1] == (
        f"/usr/bin/{PROGRAM}",
        "backup",
        *("--repository", REPOSITORY, "--backup-type", "vm", "--backup-id", "100"),
        *("--backup-time", time_s, f"qemu-server.conf:{DIRECTORY}/qemu-server.conf"),
    )
    assert world.commands.environments[-1] == {"PBS_PASSWORD": SECRET}
    assert Uploads.asked == [([], ["qemu-server.conf"])]
    assert result.size_bytes == 700 and result.archive_path.startswith("vm/100/")
    names = world.names()
    assert names.index("NoDisksFound") < names.index("DisklessStarted")
    assert names.index("DisklessStarted") < names.index("CommandStarted")
    assert "QemuStarting" not in names
    world.assert_nothing_left()
    world.assert_no_secret_told()


def test_everything_that_is_configured_is_among_the_options() -> None:
    fingerprint = Fingerprint.parse(":".join(["ab"] * 32))
    target = replace(
        TARGET,
        namespace=Namespace.parse("a/b"),
        fingerprint=fingerprint,
        key_path="/k.enc",
        master_key_path="/k.pem",
    )
    world = _world(target=target, **EMPTY)
    world.arrange = lambda world: world.node.firewalls.update({100: b"[OPTIONS]\n"})
    result = world.run()
    assert result is not None and result.error is None, result
    argv = world.commands.calls[-1]
    at = argv.index("--ns")
    assert argv[at:] == (
        *("--ns", "a/b", "--keyfile", "/k.enc", "--master-pubkey-file", "/k.pem"),
        f"qemu-server.conf:{DIRECTORY}/qemu-server.conf",
        f"fw.conf:{DIRECTORY}/fw.conf",
    )
    assert world.commands.environments[-1] == {
        "PBS_PASSWORD": SECRET,
        "PBS_FINGERPRINT": str(fingerprint),
    }


def test_passphrase_of_the_key_reaches_the_client_and_is_never_told() -> None:
    target = replace(TARGET, key_path="/k.enc", key_passphrase=Secret("correct horse"))
    world = _world(target=target, status=1, line="cannot unlock with correct horse", **EMPTY)
    world.assert_refused(world.run(), "exit code 1")
    assert world.commands.environments[-1] == {
        "PBS_PASSWORD": SECRET,
        "PBS_ENCRYPTION_PASSWORD": "correct horse",
    }
    world.assert_no_secret_told("correct horse")


def test_template_is_sent_by_the_client_where_asked_for() -> None:
    world = _world(**TEMPLATE)
    result = world.run()
    assert result is not None and result.error is None, result
    assert (
        world.commands.calls[-1][-1] == "drive-scsi0.img:/var/lib/vz/images/100/vm-100-disk-0.raw"
    )
    assert Uploads.asked == [
        ([DiskSize(device_id="drive-scsi0", size_bytes=8 << 20)], ["qemu-server.conf"])
    ]


def test_template_whose_image_is_not_the_disk_itself_is_refused() -> None:
    world = _world(**TEMPLATE)

    def arrange(world: Any) -> None:
        describe = world.node.storages.describe

        async def of_format(volid: str) -> Any:
            return replace(await describe(volid), format="qcow2")

        world.node.storages.describe = of_format

    world.arrange = arrange
    world.assert_refused(
        world.run(), "'proxmox-backup-client' cannot read disk 'scsi0' of format 'qcow2'"
    )
    assert "backup" not in [argv[1] for argv in world.commands.calls]


def test_template_without_the_client_is_refused_with_a_hint() -> None:
    world = _world(**TEMPLATE)
    del world.commands.programs[PROGRAM]
    result = world.run()
    world.assert_refused(result, "needs 'proxmox-backup-client'")
    assert result is not None and result.error is not None and "--data-path" in result.error.hint


@pytest.mark.parametrize(("status", "text"), [(255, "exit code 255"), (-9, "got signal 9")])
def test_client_that_fails_fails_the_run_and_tells_no_secret(status: int, text: str) -> None:
    world = _world(status=status, line=f"Error: login with {SECRET} failed", **EMPTY)
    world.assert_refused(world.run(), text)
    assert world.told_of(events.OutputSeen)[0].line == "Error: login with *** failed"


def test_good_end_of_the_client_alone_proves_nothing() -> None:
    world = _world(uploads_class=Doubtful, **EMPTY)
    world.assert_refused(world.run(), "backup lacks file 'qemu-server.conf.blob'")


def test_disk_less_vm_is_sent_by_our_own_client_where_the_platforms_is_missing() -> None:
    world = PbsWorld(options=OPTIONS, **EMPTY)
    result = world.run()
    assert result is not None and result.error is None, result
    assert [entry.file_name for entry in world.manifest().entries] == ["qemu-server.conf.blob"]
    assert world.blob("qemu-server.conf.blob").startswith(b"name: empty\n")
    assert result.archive_path == world.backups()[0].path
    world.assert_nothing_left()
    world.assert_no_secret_told()


def test_server_that_fails_our_own_client_keeps_nothing() -> None:
    fault = Fault(kind=FaultKind.REPLY, endpoint="POST /finish", text="odd")
    world = PbsWorld(options=OPTIONS, faults=(fault,), **EMPTY)
    world.assert_refused(world.run(), "odd")
