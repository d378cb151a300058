"""Runs whose disks QEMU's own job sends to a backup server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.engine.pbs_world import REPOSITORY, SECRET, STORAGE_ID, TARGET, PbsWorld
from vzdump_qemu import events
from vzdump_qemu.errors import PbsCorrupt
from vzdump_qemu.events import BackupMode, BitmapAction, Consistency
from vzdump_qemu.formats.pbs import (
    BackupGroup,
    BackupRef,
    EncryptionKey,
    Fingerprint,
    Namespace,
    bare_key_file,
    encode_key_file,
)
from vzdump_qemu.pbs_ports import DiskSize, PbsFinished
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.plan.options import BackupOptions, FleecingOptions, TargetOptions
from vzdump_qemu.stores.pbs.uploads import ClientUploads
from vzsim.fakepbs import Fault, FaultKind
from vzsim.fakeqmp.run_state import RunState
from vzsim.fakeqmp.script import BackupRules, CommandRule, GuestRules, Script
from vzsim.world.files import SimulatedFile

MIB = 1 << 20
TOTAL_BYTES = 10 * MIB + 512
DIRECTORY = "/var/tmp/vzdumptmp4242_100"
STEPS = [
    "JobStarted",
    "RunStarted",
    "StatusSeen",
    "VmNamed",
    "DiskIncluded",
    "DiskIncluded",
    "ModeChosen",
    "IoPrioritySet",
    "PbsBackupCreating",
    "DataPathChosen",
    "FreezeIssued",
    "JobStartIssued",
    "ThawIssued",
    "FreezeWindowClosed",
    "JobAccepted",
    "VmContinued",
    "BitmapUsed",
    "BitmapUsed",
    "ProgressMade",
    "TransferEnded",
    "PbsBackupPublished",
    "RunSucceeded",
    "RunClosed",
    "JobEnded",
]


def _options(**changes: Any) -> BackupOptions:
    return replace(BackupOptions(target=TargetOptions(storage_id=STORAGE_ID)), **changes)


def _command(name: str, **rule: Any) -> Script:
    return Script(command=(CommandRule(name=name, **rule),))


# -- good runs ---------------------------------------------------------------------------------


def test_snapshot_to_a_server_takes_the_steps_in_order() -> None:
    world = PbsWorld()
    result = world.run()
    world.assert_stored(result)
    assert world.names() == STEPS
    assert result is not None and result.consistency is Consistency.FROZEN
    assert result.size_bytes == TOTAL_BYTES
    assert world.blob("qemu-server.conf.blob").startswith(b"agent: 1\nname: web\n")


def test_command_has_the_arguments_that_a_plain_server_needs_and_no_others() -> None:
    world = PbsWorld()
    world.assert_stored(world.run())
    assert world.sent == [
        {
            "format": "pbs",
            "backup-file": REPOSITORY,
            "devlist": "drive-scsi0,drive-scsi1",
            "config-file": f"{DIRECTORY}/qemu-server.conf",
            "max-workers": 16,
            "backup-id": "100",
            "backup-time": world.backups()[0].backup_time_s,
            "password": SECRET,
            "encrypt": False,
            "use-dirty-bitmap": True,
        }
    ]


def test_everything_that_is_configured_is_among_the_arguments() -> None:
    fingerprint = Fingerprint.parse(":".join(["ab"] * 32))
    target = replace(TARGET, namespace=Namespace.parse("a/b"), fingerprint=fingerprint)
    world = PbsWorld(
        target=target,
        options=_options(
            rate_limit_bytes_per_s=64 * MIB,
            max_workers=4,
            fleecing=FleecingOptions(enabled=True, storage_id="local"),
        ),
    )

    def arrange(world: Any) -> None:
        world.node.firewalls[100] = b"[OPTIONS]\n"
        world.pbs.datastores["tank"].make_namespace(target.namespace)

    world.arrange = arrange
    world.assert_stored(world.run())
    [sent] = world.sent
    assert sent["speed"] == 64 * MIB
    assert (sent["max-workers"], sent["fleecing"]) == (4, True)
    assert sent["firewall-file"] == f"{DIRECTORY}/fw.conf"
    assert (sent["backup-ns"], sent["fingerprint"]) == ("a/b", str(fingerprint))
    assert world.blob("fw.conf.blob") == b"[OPTIONS]\n"


@pytest.mark.parametrize("mode", [BackupMode.STOP, BackupMode.SUSPEND])
def test_guest_that_was_halted_for_a_server_runs_again(mode: BackupMode) -> None:
    world = PbsWorld(options=_options(mode=mode))
    world.assert_stored(world.run())
    assert world.machine.run_state is RunState.RUNNING
    assert "FreezeIssued" not in world.names()


def test_stopped_vm_is_sent_by_a_paused_qemu_that_is_ended_afterwards() -> None:
    world = PbsWorld(state=None)
    world.assert_stored(world.run())
    assert world.machine.run_state is None


def test_template_is_sent_without_bitmaps() -> None:
    config = "name: t\nscsi0: local:100/vm-100-disk-0.raw\ntemplate: 1\n"
    world = PbsWorld(state=None, config=config)
    result = world.run()
    assert result is not None and result.error is None, result
    assert "BitmapUsed" not in world.names() and "FastIncrementBegun" not in world.names()
    assert [entry.file_name for entry in world.manifest().entries] == [
        "qemu-server.conf.blob",
        "drive-scsi0.img.fidx",
    ]


def test_second_backup_looks_at_what_changed_alone() -> None:
    async def scene(world: PbsWorld) -> None:
        await world.back_up()
        world.told.clear()
        world.machine.process.guest_write("drive-scsi0", 5 * MIB, b"changed", lambda _: None)
        result = await world.back_up()
        world.assert_stored(result)
        assert world.stored_disks()["drive-scsi0"][5 * MIB :].startswith(b"changed")
        used = world.told_of(events.BitmapUsed)
        assert [event.action for event in used] == [BitmapAction.USED, BitmapAction.USED]
        assert [event.dirty_bytes for event in used] == [4 * MIB, 0]
        [begun] = world.told_of(events.FastIncrementBegun)
        assert (begun.dirty_bytes, begun.total_bytes) == (4 * MIB, TOTAL_BYTES)
        [ended] = world.told_of(events.TransferEnded)
        assert ended.summary.transferred_bytes == 4 * MIB
        assert ended.summary.reused_bytes == TOTAL_BYTES - 4 * MIB
        assert world.told_of(events.ProgressMade)[-1].line.target_bytes == 4 * MIB
        assert result.size_bytes == TOTAL_BYTES

    PbsWorld().play(scene)


def test_backup_in_which_nothing_changed_is_whole_as_well() -> None:
    async def scene(world: PbsWorld) -> None:
        await world.back_up()
        world.assert_stored(await world.back_up())
        assert len(world.backups()) == 2
        assert world.told_of(events.ProgressMade)[-1].line.percent == 100

    PbsWorld().play(scene)


def test_backup_is_the_point_in_time_while_the_guest_writes() -> None:
    world = PbsWorld(
        script=Script(
            guest=GuestRules(writes_per_s=100, write_bytes=16384, seed=3),
            backup=BackupRules(bytes_per_s=4 * MIB),
        )
    )
    world.assert_stored(world.run())


def test_key_goes_to_qemu_as_a_path_with_its_master_key() -> None:
    target = replace(TARGET, key_path="/k.enc", master_key_path="/k.pem")
    # No key is there: QEMU says so, and nothing was sent in plain instead.
    world = PbsWorld(target=target, uploads_class=Unchecked)
    world.assert_refused(world.run(), "VM 100 qmp command 'backup' failed - proxmox_backup_new")
    [sent] = world.sent
    assert sent["encrypt"] is True
    assert (sent["keyfile"], sent["master-keyfile"]) == ("/k.enc", "/k.pem")
    [told] = world.told_of(events.EncryptionEnabled)
    assert told.has_master_key


def test_encrypted_backup_is_whole_and_incremental_with_its_key() -> None:
    key = EncryptionKey(bytes(range(32)))

    async def scene(world: PbsWorld) -> None:
        key_file = bare_key_file(key, created_s=1, modified_s=1)
        world.files.files["/k.enc"] = SimulatedFile(bytearray(encode_key_file(key_file)))
        for _ in range(2):
            result = await world.back_up()
            assert result.error is None, result
        expected = {name: bytes(data) for name, data in world.host.points_in_time.items()}
        assert world.stored_disks(key=key) == expected
        assert world.told_of(events.EncryptionEnabled)[0].has_master_key is False
        assert world.told_of(events.BitmapUsed)[-1].action is BitmapAction.USED
        config = world.blob("qemu-server.conf.blob", key=key)
        assert config.startswith(b"agent: 1\nname: web\n")

    PbsWorld(target=replace(TARGET, key_path="/k.enc")).play(scene)


def test_warning_of_the_target_is_told_by_every_run() -> None:
    world = PbsWorld(target=replace(TARGET, warning="Ignoring master key settings"))
    result = world.run()
    world.assert_stored(result)
    assert result is not None and result.warnings == ("Ignoring master key settings",)


# -- what QEMU must be able to do --------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (
            {"error": "no such command", "error_class": "CommandNotFound"},
            "PBS backups are not supported by the running QEMU version. Please make sure you've "
            "installed the latest version and the VM has been restarted.",
        ),
        ({"error": "odd"}, "QMP command query-proxmox-support failed - odd"),
        ({"reply": {}}, "query-proxmox-support returned empty value"),
    ],
)
def test_feature_list_that_cannot_be_had_ends_the_run(rule: dict[str, Any], text: str) -> None:
    world = PbsWorld(script=_command("query-proxmox-support", **rule))
    result = world.run()
    world.assert_refused(result, text)
    assert result is not None and str(result.error) == text
    assert "backup" not in world.qmp_log and "FreezeIssued" not in world.names()


def test_master_key_that_qemu_cannot_use_ends_the_run() -> None:
    world = PbsWorld(
        target=replace(TARGET, key_path="/k.enc", master_key_path="/k.pem"),
        script=_command("query-proxmox-support", drop=["pbs-masterkey"]),
        uploads_class=Unchecked,
    )
    world.assert_refused(
        world.run(), "master key configured but running QEMU version does not support master keys"
    )


def test_qemu_without_bitmaps_is_not_asked_for_them() -> None:
    world = PbsWorld(
        script=_command("query-proxmox-support", drop=["pbs-dirty-bitmap", "query-bitmap-info"])
    )
    world.assert_stored(world.run())
    assert "use-dirty-bitmap" not in world.sent[0]
    assert "query-pbs-bitmap-info" not in world.qmp_log


@pytest.mark.parametrize("rule", [{"error": "odd"}, {"reply": [{"drive": 5}]}])
def test_state_of_bitmaps_that_cannot_be_told_is_a_warning(rule: dict[str, Any]) -> None:
    world = PbsWorld(script=_command("query-pbs-bitmap-info", **rule))
    world.assert_stored(world.run())
    [warned] = world.told_of(events.Warned)
    assert warned.text.startswith("unable to tell the state of the dirty bitmaps - ")


# -- refused before the VM is touched ----------------------------------------------------------


class Unchecked(ClientUploads):
    """Lets everything pass until QEMU is asked."""

    async def check(self, target: PbsTarget) -> None:
        return

    async def last_time_s(self, target: PbsTarget, group: BackupGroup) -> int:
        return 0


@pytest.mark.parametrize("mode", list(BackupMode))
def test_token_that_the_server_does_not_know_touches_no_guest(mode: BackupMode) -> None:
    target = replace(TARGET, password=type(TARGET.password)("another"))
    world = PbsWorld(target=target, options=_options(mode=mode))
    assert world.run() is None
    assert world.batch is not None and world.batch.error is not None
    text = str(world.batch.error)
    assert text.startswith("could not activate storage 'pbs1': ") and "another" not in text
    assert world.node.lock_log == [] and world.qmp_log == []
    assert world.machine.run_state is RunState.RUNNING and world.machine.boot_count == 1


@pytest.mark.parametrize("mode", list(BackupMode))
def test_token_revoked_after_the_job_began_touches_no_guest_either(mode: BackupMode) -> None:
    world = PbsWorld(options=_options(mode=mode), on_event={"RunStarted": PbsWorld.revoke})
    world.assert_refused(world.run(), "authentication failed")
    assert world.node.lock_log == [] and "backup" not in world.qmp_log
    assert world.machine.run_state is RunState.RUNNING and world.machine.boot_count == 1
    assert not {"GuestStopping", "GuestSuspending", "FreezeIssued"} & set(world.names())


def test_server_named_on_the_command_line_is_named_in_the_error() -> None:
    target = replace(TARGET, storage_id="", password=type(TARGET.password)("another"))
    world = PbsWorld(options=_options(target=TargetOptions(pbs=target)))
    assert world.run() is None
    assert world.batch is not None
    assert str(world.batch.error).startswith(f"could not use backup server '{REPOSITORY}': ")


@pytest.mark.parametrize(
    "target",
    [TargetOptions(pbs=TARGET, to_stdout=True), TargetOptions(storage_id="pbs1", to_stdout=True)],
)
def test_backup_to_a_server_cannot_go_to_standard_output(target: TargetOptions) -> None:
    world = PbsWorld(options=_options(target=target))
    assert world.run() is None
    assert world.batch is not None
    assert str(world.batch.error) == "unable to pipe backup to stdout"


# -- what goes wrong in QEMU -------------------------------------------------------------------


def test_refused_start_tells_what_qemu_said_without_the_password() -> None:
    said = f"backup connect failed: no login with '{SECRET}'"
    world = PbsWorld(script=_command("backup", error=said))
    result = world.run()
    world.assert_refused(
        result, "VM 100 qmp command 'backup' failed - backup connect failed: no login with '***'"
    )
    assert result is not None and result.error is not None
    assert result.error.__cause__ is None and result.error.__context__ is None
    assert "ThawIssued" in world.names()


def test_error_of_the_job_is_told_without_the_password() -> None:
    world = PbsWorld(script=Script(backup=BackupRules(status="error", errmsg=f"no {SECRET}")))
    result = world.run()
    assert result is not None and str(result.error) == "no ***"
    world.assert_no_secret_told()


def test_reply_that_never_comes_ends_the_run_after_its_time_and_the_job_with_it() -> None:
    world = PbsWorld(
        script=Script(
            command=(CommandRule(name="backup", silent=True),),
            backup=BackupRules(bytes_per_s=1 << 14),
        )
    )
    began_ns = 0
    result = world.run()
    world.assert_refused(result, "VM 100 qmp command 'backup' failed - ")
    assert result is not None and result.error is not None and result.error.hint
    assert 125 <= result.duration_s - began_ns < 140
    assert "backup-cancel" in world.qmp_log


def test_job_without_uuid_is_cancelled() -> None:
    world = PbsWorld(
        script=Script(
            command=(CommandRule(name="backup", drop=("UUID",)),),
            backup=BackupRules(bytes_per_s=1 << 16),
        )
    )
    world.assert_refused(world.run(), "got no uuid for backup task")
    assert "backup-cancel" in world.qmp_log


def test_status_of_another_job_ends_the_run_and_not_that_job() -> None:
    world = PbsWorld(
        script=Script(backup=BackupRules(uuid="not-ours", bytes_per_s=1 << 20)),
    )
    result = world.run()
    assert result is not None and str(result.error) == "got unexpected uuid"
    assert "backup-cancel" not in world.qmp_log


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind=FaultKind.REPLY, endpoint="POST /fixed_chunk", first=3, text="no room"),
        Fault(kind=FaultKind.CUT, endpoint="GET /backup", bytes=30_000),
    ],
)
def test_server_that_fails_meanwhile_ends_the_run_with_what_qemu_says(fault: Fault) -> None:
    world = PbsWorld(faults=(fault,))
    world.assert_refused(world.run(), "backup write data failed: ")
    assert world.machine.run_state is RunState.RUNNING


def test_increment_after_a_failed_one_is_whole() -> None:
    async def scene(world: PbsWorld) -> None:
        await world.back_up()
        world.machine.process.guest_write("drive-scsi0", MIB, b"changed", lambda _: None)
        world.pbs.faults.add(Fault(kind=FaultKind.REPLY, endpoint="POST /finish"))
        assert (await world.back_up()).error is not None
        world.assert_stored(await world.back_up())
        assert len(world.backups()) == 2

    PbsWorld().play(scene)


def test_cancelled_run_leaves_nothing_at_the_server() -> None:
    world = PbsWorld(
        script=Script(backup=BackupRules(bytes_per_s=1 << 18)), cancel_on=events.VmContinued
    )
    assert world.run() is None
    assert "backup-cancel" in world.qmp_log
    world.assert_nothing_left()
    assert world.backups() == []


# -- what proves the backup --------------------------------------------------------------------


class Doubtful(ClientUploads):
    """A server whose manifest lacks something."""

    async def prove(
        self,
        target: PbsTarget,
        backup: BackupRef,
        disks: Sequence[DiskSize],
        config_names: Sequence[str],
    ) -> PbsFinished:
        assert [disk.size_bytes for disk in disks] == [8 * MIB, 2 * MIB + 512]
        assert list(config_names) == ["qemu-server.conf"]
        raise PbsCorrupt("it lacks file 'drive-scsi1.img.fidx'")


def test_backup_that_the_server_does_not_hold_whole_is_no_success() -> None:
    world = PbsWorld(uploads_class=Doubtful)
    result = world.run()
    assert result is not None and result.archive_path == ""
    assert str(result.error) == (
        "QEMU is done, but the backup cannot be shown to be whole - "
        "it lacks file 'drive-scsi1.img.fidx'"
    )
    world.assert_nothing_left()


def test_run_cancelled_while_its_backup_is_proved_says_that_the_server_has_it() -> None:
    world = PbsWorld()

    class Late(ClientUploads):
        async def prove(
            self,
            target: PbsTarget,
            backup: BackupRef,
            disks: Sequence[DiskSize],
            config_names: Sequence[str],
        ) -> PbsFinished:
            world.cancel()
            return await super().prove(target, backup, disks, config_names)

    world.uploads_class = Late
    assert world.run() is None
    [backup] = world.backups()
    [failed] = world.told_of(events.RunFailed)
    assert failed.text == "interrupted by signal"
    [warned] = world.told_of(events.Warned)
    assert warned.text == f"backup '{backup.path}' is final at its server all the same"
    assert world.names().index("Warned") < world.names().index("RunFailed")
    world.assert_nothing_left()


def test_backup_whose_end_qemu_did_not_hear_of_is_a_success_with_a_warning() -> None:
    fault = Fault(kind=FaultKind.HANG_AFTER, endpoint="POST /finish")
    world = PbsWorld(faults=(fault,))
    result = world.run()
    world.assert_stored(result)
    assert result is not None
    [warning] = result.warnings
    assert warning.startswith("the backup is final, but QEMU did not hear so: ")
    assert "ServerFinishing" in world.names()


def test_backup_that_the_server_could_not_finish_is_a_failure() -> None:
    world = PbsWorld(faults=(Fault(kind=FaultKind.REPLY, endpoint="POST /finish", text="odd"),))
    world.assert_refused(world.run(), "odd")
