"""What a simulated process is asked so that every command, reply shape and event appears.

One list per dialect, in order, on a machine with two disks; used by `check_schema`. Each command of
the simulator has to appear with a success, save those that only refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vzsim.fakeqmp.schema import Dialect


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command, or something that happens beside the monitor.

    Attributes:
        command: empty for a happening.
        happening: what the guest or the outside does; see `check_schema`.
        fd_count: descriptors that come along.
        wait_s: virtual time that passes afterwards.
        nodes: ask for everything that can be queried afterwards.
    """

    command: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    happening: str = ""
    fd_count: int = 0
    wait_s: float = 0.01
    then_query: bool = False


def steps_of(dialect: Dialect) -> list[Step]:
    """The session of that dialect; it ends with ``quit``."""
    steps = [_step("query-commands"), _step("query-qmp-schema"), _step("query-version")]
    if dialect is Dialect.STORAGE_DAEMON:
        # The guest's disks are opened by hand.
        steps += [_raw("disk0", "/d0"), _raw("disk1", "/d1")]
        disk, other = "disk0", "disk1"
    else:
        disk, other = "drive-scsi0", "drive-scsi1"
    steps += _node_steps(disk)
    steps += _bitmap_steps(disk)
    steps += _pull_steps(disk)
    steps += _job_steps(disk, other)
    if dialect is not Dialect.STORAGE_DAEMON:
        steps += _machine_steps()
    if dialect is Dialect.PVE:
        steps += _patched_steps()
    if dialect is not Dialect.STORAGE_DAEMON:
        steps += _end_of_guest_steps()
    return [*steps, _step("quit")]


def _step(command: str, /, *, wait_s: float = 0.01, **arguments: Any) -> Step:
    given = {key.rstrip("_").replace("_", "-"): value for key, value in arguments.items()}
    return Step(command=command, arguments=given, wait_s=wait_s)


def _look() -> Step:
    return Step(then_query=True)


def _raw(name: str, path: str, **options: Any) -> Step:
    file = {"driver": "file", "filename": path}
    return _step("blockdev-add", driver="raw", node_name=name, file=file, **options)


def _node_steps(disk: str) -> list[Step]:
    file = {"driver": "file", "filename": "/q.qcow2"}
    return [
        _look(),
        _raw("plain", "/push"),
        _raw("short", "/spare", size=1 << 20, read_only=True),
        _step("blockdev-add", driver="qcow2", node_name="own", file=file),
        _step("blockdev-add", driver="file", node_name="bare", filename="/bare"),
        _step("blockdev-add", driver="raw", node_name="over", file="bare"),
        _step("object-add", qom_type="throttle-group", id="limits"),
        _step(
            "blockdev-add",
            driver="throttle",
            node_name="slow",
            throttle_group="limits",
            file={"driver": "raw", "file": {"driver": "file", "filename": "/slow"}},
        ),
        _step(
            "blockdev-add",
            driver="qcow2",
            node_name="fleece",
            file={"driver": "file", "filename": "/fleece.qcow2"},
            backing=None,
        ),
        _step(
            "blockdev-add", driver="copy-before-write", node_name="cbw", file="own", target="plain"
        ),
        _step("blockdev-add", driver="snapshot-access", node_name="view", file="cbw"),
        _look(),
        _step(
            "blockdev-reopen",
            options=[{"driver": "raw", "node-name": "over", "file": "bare", "read-only": True}],
        ),
        _step("block_resize", node_name="slow", size=1 << 20),
        *[_step("blockdev-del", node_name=name) for name in ("view", "cbw", "over", "slow")],
        *[_step("blockdev-del", node_name=name) for name in ("short", "bare", "fleece")],
        _step("object-del", id="limits"),
        _step("blockdev-del", node_name="missing"),
    ]


def _bitmap_steps(disk: str) -> list[Step]:
    add = {"node": disk, "name": "second", "granularity": 4096, "disabled": True}
    return [
        _step("block-dirty-bitmap-add", node=disk, name="first"),
        _step("block-dirty-bitmap-add", node="own", name="kept", persistent=True),
        _step(
            "transaction",
            actions=[
                {"type": "block-dirty-bitmap-add", "data": add},
                {"type": "block-dirty-bitmap-clear", "data": {"node": disk, "name": "first"}},
            ],
        ),
        _step("transaction", actions=[{"type": "abort", "data": {}}]),
        _step("block-dirty-bitmap-merge", node=disk, target="second", bitmaps=["first"]),
        _step("block-dirty-bitmap-enable", node=disk, name="second"),
        _step("block-dirty-bitmap-disable", node=disk, name="second"),
        _step("x-debug-block-dirty-bitmap-sha256", node=disk, name="second"),
        _look(),
        _step("query-named-block-nodes", flat=True),
        _step(
            "blockdev-backup",
            job_id="b1",
            device=disk,
            target="plain",
            sync="bitmap",
            bitmap="second",
            bitmap_mode="never",
            wait_s=2,
        ),
        _step("block-dirty-bitmap-clear", node=disk, name="second"),
        _step("block-dirty-bitmap-remove", node=disk, name="second"),
    ]


def _pull_steps(disk: str) -> list[Step]:
    fleece = {"driver": "file", "filename": "/fleece.qcow2"}
    backup = {"job-id": "pull", "device": disk, "target": "fleece", "sync": "none"}
    return [
        _step(
            "blockdev-add", driver="qcow2", node_name="fleece", file=fleece, backing=_node_of(disk)
        ),
        _step(
            "transaction",
            actions=[{"type": "blockdev-backup", "data": backup}],
            properties={"completion-mode": "grouped"},
        ),
        _step("nbd-server-start", addr={"type": "unix", "data": {"path": "/nbd"}}),
        _step(
            "block-export-add", type_="nbd", id="e", node_name="fleece", name="d", writable=False
        ),
        _step("nbd-server-add", device=disk, name="old"),
        _look(),
        Step(happening="guest write"),
        _look(),
        _step("nbd-server-remove", name="old"),
        _step("block-export-del", id="e", mode="hard"),
        _step("block-export-add", type_="nbd", id="e2", node_name="fleece"),
        _step("nbd-server-stop"),
        _step("job-cancel", id="pull"),
        _look(),
        _step("blockdev-del", node_name="fleece"),
        _step("block-dirty-bitmap-remove", node=disk, name="first"),
    ]


def _node_of(disk: str) -> str:
    # Overlays name a node; a drive's made-up name is put in by the one who runs the steps.
    return f"node of {disk}"


def _job_steps(disk: str, other: str) -> list[Step]:
    push: dict[str, Any] = {"device": disk, "target": "plain", "sync": "full"}
    held: dict[str, Any] = {"auto_finalize": False, "auto_dismiss": False}
    steps = [
        _step("blockdev-backup", job_id="p1", speed=1 << 20, **push),
        _look(),
        _step("block-job-set-speed", device="p1", speed=2 << 20),
        _step("block-job-pause", device="p1"),
        _look(),
        _step("block-job-resume", device="p1"),
        _step("job-pause", id="p1"),
        _step("job-resume", id="p1"),
        _step("block-job-cancel", device="p1", force=True),
        _step("blockdev-backup", job_id="p2", wait_s=2, **push, **held),
        _look(),
        _step("job-finalize", id="p2"),
        _look(),
        _step("job-dismiss", id="p2"),
        _step("blockdev-backup", job_id="p3", wait_s=2, **push, **held),
        _step("block-job-finalize", id="p3"),
        _step("block-job-dismiss", id="p3"),
        Step(happening="target full"),
        _step("blockdev-backup", job_id="p4", on_target_error="stop", wait_s=1, **push),
        _look(),
        Step(happening="target has room"),
        _step("block-job-resume", device="p4", wait_s=3),
    ]
    for number, complete in enumerate(("block-job-complete", "job-complete")):
        path = f"/mirror{number}"
        name = {"device": f"m{number}"} if complete == "block-job-complete" else {"id": "m1"}
        steps += [
            _step(
                "drive-mirror",
                job_id=f"m{number}",
                device=other,
                target=path,
                format="raw",
                sync="full",
                wait_s=1,
            ),
            _look(),
            Step(command=complete, arguments=name, wait_s=1),
        ]
    return steps


def _machine_steps() -> list[Step]:
    path = "/machine/peripheral/scsi0"
    events = [
        {"capability": "events", "state": True},
        {"capability": "pause-before-switchover", "state": True},
    ]
    return [
        *[_step(name) for name in ("query-name", "query-uuid", "query-chardev")],
        _step("query-iothreads"),
        *[_step(name) for name in ("query-current-machine", "stop", "query-status", "cont")],
        Step(command="getfd", arguments={"fdname": "a"}, fd_count=1),
        _step("closefd", fdname="a"),
        Step(command="add-fd", arguments={"opaque": "x"}, fd_count=1),
        _look(),
        _step("remove-fd", fdset_id=0),
        _step("qom-get", path=path, property="drive"),
        _step("blockdev-add", driver="copy-before-write", node_name="cbw2",
              file="drive-scsi0", target="plain"),
        _step("qom-set", path=path, property="drive", value="cbw2"),
        _step("human-monitor-command", command_line="info backup"),
        _step("system_reset", wait_s=0.1),
        Step(happening="guest reset", wait_s=0.1),
        Step(happening="guest suspends"),
        _step("system_wakeup"),
        _step("watchdog-set-action", action="pause"),
        _step("set-action", reboot="reset", shutdown="pause"),
        Step(happening="guest panics"),
        _step("cont"),
        _step("eject", device="drive-ide2", force=True),
        _step("migrate-set-capabilities", capabilities=events),
        _step("migrate", uri="exec:cat", wait_s=1),
        _look(),
        _step("migrate_cancel"),
        _look(),
        _step("migrate-pause"),
        _step("cont"),
        Step(happening="disk full"),
        Step(happening="guest write", wait_s=0.1),
        _look(),
        Step(happening="disk has room"),
        _step("cont", wait_s=0.1),
    ]  # fmt: skip


def _patched_steps() -> list[Step]:
    return [
        _step("query-backup"),
        _step("query-proxmox-support"),
        Step(command="getfd", arguments={"fdname": "b"}, fd_count=1),
        _step("backup", backup_file="/dev/fdname/b", devlist="drive-scsi1", speed=1 << 20),
        _look(),
        _step("query-backup"),
        _step("backup-cancel", wait_s=1),
        _step("query-backup"),
        _step("query-pbs-bitmap-info"),
        Step(command="getfd", arguments={"fdname": "b"}, fd_count=1),
        _step("backup", backup_file="/dev/fdname/b", devlist="drive-scsi1", wait_s=9),
        _step("query-backup"),
        *_server_steps(),
        _raw("drive-scsi1-fleecing", "/fleece4"),
        _step(
            "backup-access-setup",
            target_id="t",
            devices=[{"device": "drive-scsi1", "bitmap-mode": "new"}],
        ),
        _look(),
        _step("query-pbs-bitmap-info"),
        _step("backup-access-teardown", target_id="t", success=True),
    ]


def _server_steps() -> list[Step]:
    """Backups to a server with everything that can be said, and every use of the bitmap."""
    given = {
        "format": "pbs", "backup_file": "host:store", "devlist": "drive-scsi1", "password": "x",
        "backup_id": "100", "backup_ns": "a", "fingerprint": "", "keyfile": "/any",
        "key_password": "x", "master_keyfile": "/any", "compress": True, "encrypt": True,
        "config_file": "/any", "firewall_file": "/any", "max_workers": 2,
    }  # fmt: skip
    steps = []
    for number, uses_bitmap in enumerate((False, True, True, False), 1):
        steps += [
            _step("backup", backup_time=number, use_dirty_bitmap=uses_bitmap, wait_s=9, **given),
            _step("query-backup"),
            _step("query-pbs-bitmap-info"),
        ]
    return steps


def _end_of_guest_steps() -> list[Step]:
    return [
        _step("system_powerdown", wait_s=1),
        _step("query-status"),
        Step(happening="agent dies"),
    ]
