"""Disks that are pulled, and those that are refused by name before anything is changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from vzdump_qemu.engine.attachments import RunDisk
from vzdump_qemu.engine.pull_disks import PullDisk, find_pull_disks
from vzdump_qemu.errors import JobError, QmpCommandError
from vzdump_qemu.ports import QmpEvent, VolumeFacts

SCSI = "/machine/peripheral/scsi0"
BUS = "/machine/peripheral/scsihw0/virtio-backend"
IMAGE = {"virtual-size": 1 << 20}


class Told:
    """A monitor that answers from tables, as recorded of QEMU 7.2.22."""

    def __init__(
        self,
        *backends: Mapping[str, Any],
        properties: Mapping[tuple[str, str], object] | None = None,
        iothreads: int = 0,
        version: tuple[int, int] = (7, 2),
        jobs: tuple[Mapping[str, Any], ...] = (),
    ) -> None:
        self._properties = {(SCSI, "type"): "scsi-hd", (SCSI, "share-rw"): False}
        self._properties |= {(SCSI, "parent_bus"): f"{BUS}/scsihw0.0", **(properties or {})}
        major, minor = version
        self._replies: dict[str, Any] = {
            "query-block": backends,
            "query-block-jobs": jobs,
            "query-version": {"qemu": {"major": major, "minor": minor, "micro": 0}},
            "query-iothreads": [{"id": f"io{index}"} for index in range(iothreads)],
        }

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float
    ) -> Any:
        if command != "qom-get":
            return self._replies[command]
        assert arguments is not None
        key = (arguments["path"], arguments["property"])
        if key not in self._properties:
            text = f"Property '{key[1]}' not found"
            raise QmpCommandError(command=command, error_class="GenericError", description=text)
        return self._properties[key]

    async def execute_with_fd(
        self, command: str, arguments: Mapping[str, Any], fd: int, *, timeout_s: float
    ) -> Any:
        raise AssertionError("no descriptor is needed")

    def events(self, *names: str) -> AbstractAsyncContextManager[AsyncIterator[QmpEvent]]:
        raise AssertionError("no event is needed")


def _backend(**changes: object) -> dict[str, Any]:
    inserted = {"node-name": "#block1", "ro": False, "image": IMAGE}
    return {"device": "drive-scsi0", "qdev": "scsi0", "inserted": inserted, **changes}


def _inserted(**changes: object) -> dict[str, Any]:
    return {"node-name": "#block1", "ro": False, "image": IMAGE, **changes}


def _disk(key: str = "scsi0") -> RunDisk:
    facts = VolumeFacts(
        volid=f"local:{key}",
        storage_id="local",
        path=f"/{key}.raw",
        size_bytes=1 << 20,
        format="raw",
        is_block_device=False,
    )
    return RunDisk(key=key, device_id=f"drive-{key}", facts=facts)


def _find(told: Told, *disks: RunDisk) -> tuple[PullDisk, ...]:
    return asyncio.run(find_pull_disks(told, disks or (_disk(),)))


@pytest.mark.parametrize(
    "backend",
    [
        _backend(),
        _backend(device=""),
        _backend(device="", qdev=f"{SCSI}/virtio-backend"),
        _backend(device="", qdev="other", inserted=_inserted(**{"node-name": "drive-scsi0"})),
    ],
)
def test_disk_is_found_by_drive_device_or_node(backend: dict[str, Any]) -> None:
    [found] = _find(Told(backend))
    assert found.node_name == backend["inserted"]["node-name"]
    assert found.size_bytes == 1 << 20


def test_size_is_that_of_the_node_and_not_of_the_volume() -> None:
    [found] = _find(Told(_backend(inserted=_inserted(image={"virtual-size": 528 * 1024}))))
    assert found.size_bytes == 528 * 1024


def test_read_only_disk_needs_no_protection() -> None:
    [found] = _find(Told(_backend(inserted=_inserted(ro=True))))
    assert found.device_path == ""


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (Told(), "Device 'drive-scsi0' not found"),
        (Told(_backend(inserted=None)), "Device 'drive-scsi0' has no medium"),
        (
            Told(_backend(inserted=_inserted(image={"virtual-size": 0}))),
            "Device 'drive-scsi0' has size 0",
        ),
        (
            Told(_backend(), jobs=({"device": "mirror0", "type": "mirror"},)),
            "block job 'mirror0' (mirror) is active in the VM",
        ),
        (
            Told(_backend(), properties={(SCSI, "type"): "scsi-block"}),
            "Device 'drive-scsi0' passes the guest's commands through",
        ),
        (
            Told(_backend(), properties={(SCSI, "share-rw"): True}),
            "Device 'drive-scsi0' is shared with other writers",
        ),
        (
            Told(_backend(), properties={(SCSI, "iothread"): "/objects/io0"}, iothreads=1),
            "Device 'drive-scsi0' runs in an iothread",
        ),
        (
            Told(_backend(), properties={(BUS, "iothread"): "/objects/io0"}, iothreads=1),
            "Device 'drive-scsi0' runs in an iothread",
        ),
    ],
)
def test_disk_that_cannot_be_had_is_refused_by_name(told: Told, text: str) -> None:
    with pytest.raises(JobError) as caught:
        _find(told)
    assert str(caught.value).startswith(text)


def test_iothread_of_a_newer_qemu_is_no_hindrance() -> None:
    told = Told(
        _backend(), properties={(BUS, "iothread"): "/objects/io0"}, iothreads=1, version=(9, 0)
    )
    assert len(_find(told)) == 1


def test_iothread_of_another_device_is_no_hindrance() -> None:
    assert len(_find(Told(_backend(), iothreads=1))) == 1


def test_two_disks_on_one_node_are_refused() -> None:
    second = _backend(device="drive-scsi1", qdev="scsi1")
    with pytest.raises(JobError, match="'drive-scsi1' and 'drive-scsi0' share a node"):
        _find(Told(_backend(), second), _disk(), _disk("scsi1"))
