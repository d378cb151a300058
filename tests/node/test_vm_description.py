"""What a running QEMU is asked, and what becomes of its answers (shapes of QEMU 7.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from vzdump_qemu.errors import ConfigError, QmpCommandError
from vzdump_qemu.formats.described_vm import DescribedVm
from vzdump_qemu.node.vm_description import describe_vm

ANON = "/machine/peripheral-anon"
MIB = 1 << 20


def inserted(node: str = "#block1", **more: object) -> dict[str, object]:
    image = {"virtual-size": 4 * MIB, "filename": "x.raw", "format": "raw"}
    return {"node-name": node, "drv": "raw", "ro": False, "file": "/x.raw", "image": image, **more}


def backend(qdev: str = "", device: str = "", **more: object) -> dict[str, object]:
    found: dict[str, object] = {"device": device, "removable": False, **more}
    return found | ({"qdev": qdev} if qdev else {})


class Answers:
    """A monitor with fixed answers and a tree of properties; what it lacks is an error."""

    def __init__(self, *backends: Mapping[str, object], **replies: object) -> None:
        self.properties: dict[tuple[str, str], object] = {
            ("/machine", "type"): "pc-q35-7.2-machine"
        }
        self.children: dict[str, list[dict[str, str]]] = {}
        self.replies: dict[str, object] = {
            "query-version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""},
            "query-block": list(backends),
            "query-name": {},
            "query-uuid": {"UUID": "00000000-0000-0000-0000-000000000000"},
            "query-target": {"arch": "x86_64"},
            "query-memory-size-summary": {"base-memory": 128 * MIB, "plugged-memory": 64 * MIB},
            "query-cpus-fast": [
                {"cpu-index": index, "props": {"socket-id": index // 2, "core-id": index % 2}}
                for index in range(4)
            ],
            **{name.replace("_", "-"): reply for name, reply in replies.items()},
        }

    def device(self, path: str, **properties: object) -> Answers:
        for name, value in properties.items():
            self.properties[path, name] = value
        return self

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float
    ) -> Any:
        given = arguments or {}
        match command:
            case "qom-get" if (given["path"], given["property"]) in self.properties:
                return self.properties[given["path"], given["property"]]
            case "qom-list" if given["path"] in self.children:
                return self.children[given["path"]]
            case _ if command in self.replies:
                return self.replies[command]
        raise QmpCommandError(command=command, error_class="GenericError", description="no")

    async def describe(self, *excluded: str) -> DescribedVm:
        return await describe_vm(self, has_agent=False, excluded=excluded)  # type: ignore[arg-type]


async def test_machine_is_described_by_its_numbers() -> None:
    vm = await Answers(query_name={"name": "web"}).describe()
    assert (vm.name, vm.uuid, vm.machine, vm.arch) == ("web", "", "pc-q35-7.2", "x86_64")
    assert (vm.socket_count, vm.core_count, vm.memory_bytes) == (2, 2, 192 * MIB)
    assert vm.qemu_version == "7.2.22"


async def test_machine_that_tells_little_is_described_all_the_same() -> None:
    answers = Answers()
    for name in ("query-target", "query-memory-size-summary", "query-cpus-fast"):
        del answers.replies[name]
    answers.properties.clear()
    vm = await answers.describe()
    assert (vm.socket_count, vm.core_count, vm.memory_bytes) == (1, 1, 512 * MIB)
    assert (vm.machine, vm.nics, vm.drives) == ("", (), ())


async def test_uneven_sockets_are_one() -> None:
    cpus = [{"props": {"socket-id": number}} for number in (0, 0, 1)]
    vm = await Answers(query_cpus_fast=cpus).describe()
    assert (vm.socket_count, vm.core_count) == (1, 3)


@pytest.mark.parametrize(
    ("device_type", "bus_path", "controller", "key"),
    [
        ("virtio-blk-pci", "/machine/q35/pcie.0", "q35-pcihost", "virtio0"),
        ("scsi-hd", "/machine/peripheral/s/virtio-backend/s.0", "virtio-scsi-pci", "scsi0"),
        ("ide-hd", "/machine/unattached/device[18]/ide.1", "ich9-ahci", "sata0"),
        ("ide-hd", "/machine/unattached/device[18]/ide.1", "piix3-ide", "ide0"),
        ("nvme", "/machine/q35/pcie.0", "q35-pcihost", "scsi0"),
    ],
)
async def test_bus_is_told_by_the_device_and_its_controller(
    device_type: str, bus_path: str, controller: str, key: str
) -> None:
    path = f"{ANON}/device[0]"
    answers = Answers(backend(path, inserted=inserted()))
    answers.device(path, type=device_type, parent_bus=bus_path)
    answers.device(bus_path.rpartition("/")[0].removesuffix("/virtio-backend"), type=controller)
    [drive] = (await answers.describe()).drives
    assert (drive.key, drive.controller, drive.device_path) == (key, controller, path)


async def test_disk_of_blockdev_is_found_by_its_device_id() -> None:
    answers = Answers(backend("disk7", inserted=inserted("fmt7")))
    answers.device("/machine/peripheral/disk7", type="scsi-hd", bootindex=3, serial="S1")
    [drive] = (await answers.describe()).drives
    assert drive.device_path == "/machine/peripheral/disk7"
    assert (drive.boot_index, drive.serial, drive.label) == (3, "S1", "fmt7")
    assert drive.names == ("disk7", "fmt7")


async def test_virtio_backend_has_the_type_of_the_device_in_front() -> None:
    path = "/machine/peripheral/vb"
    answers = Answers(backend(f"{path}/virtio-backend", inserted=inserted()))
    answers.device(path, type="virtio-blk-pci", bootindex=-1)
    [drive] = (await answers.describe()).drives
    assert (drive.bus, drive.boot_index) == ("virtio", None)
    assert drive.device_path == f"{path}/virtio-backend"


async def test_disks_come_in_the_order_of_their_addresses() -> None:
    first, second = f"{ANON}/device[0]", f"{ANON}/device[1]"
    answers = Answers(backend(second, inserted=inserted()), backend(first, inserted=inserted()))
    answers.device(first, type="virtio-blk-pci", addr=16)
    answers.device(second, type="virtio-blk-pci", addr=24)
    found = [drive.device_path for drive in (await answers.describe()).drives]
    assert found == [first, second]


async def test_empty_cd_is_a_drive_and_other_empty_drives_are_none() -> None:
    cd, card = f"{ANON}/device[0]", f"{ANON}/device[1]"
    answers = Answers(backend(cd, removable=True), backend(card, removable=True), backend())
    answers.device(cd, type="ide-cd").device(card, type="sd-card")
    vm = await answers.describe()
    assert [(drive.key, drive.is_cdrom) for drive in vm.drives] == [("ide0", True)]
    assert vm.left_out == ()


async def test_what_holds_data_and_is_no_disk_is_named() -> None:
    path = f"{ANON}/device[0]"
    answers = Answers(
        backend(path, "floppy0", inserted=inserted()), backend("", "lost", inserted=inserted())
    )
    answers.device(path, type="floppy")
    vm = await answers.describe()
    assert vm.drives == ()
    assert vm.left_out == (
        "floppy 'floppy0' is not a disk",
        "drive 'lost' has no device of the guest",
    )


async def test_writable_flash_is_the_efi_disk() -> None:
    vm = await Answers(
        backend("/machine/system.flash0", "pflash0", inserted=inserted(ro=True)),
        backend("/machine/system.flash1", "pflash1", inserted=inserted()),
    ).describe()
    assert [drive.key for drive in vm.drives] == ["efidisk0"]
    assert vm.has_firmware_flash


@pytest.mark.parametrize("told", [{"encrypted": True}, {"drv": "luks"}])
async def test_encrypted_disk_is_known_as_one(told: dict[str, object]) -> None:
    vm = await Answers(backend("d", inserted=inserted(**told))).describe()
    assert [drive.encrypted for drive in vm.drives] == [True]


@pytest.mark.parametrize("word", ["scsi0", "d", "fmt"])
async def test_disk_is_left_out_by_any_of_its_names(word: str) -> None:
    vm = await Answers(backend("d", inserted=inserted("fmt"))).describe(word)
    assert [drive.excluded for drive in vm.drives] == [True]


async def test_unknown_disk_to_leave_out_is_refused() -> None:
    with pytest.raises(ConfigError, match="the VM has no disk 'nope' to leave out"):
        await Answers(backend("d", inserted=inserted())).describe("nope")


async def test_network_cards_are_found_wherever_they_hang() -> None:
    answers = Answers()
    answers.children = {
        "/machine/peripheral": [
            {"name": "type", "type": "string"},
            {"name": "n0", "type": "child<virtio-net-pci>"},
        ],
        "/machine/unattached": [{"name": "device[3]", "type": "child<e1000e>"}],
    }
    answers.device("/machine/peripheral/n0", mac="52:54:00:00:00:01")
    answers.device("/machine/unattached/device[3]", mac="52:54:00:00:00:02")
    assert (await answers.describe()).nics == (
        ("virtio-net-pci", "52:54:00:00:00:01"),
        ("e1000e", "52:54:00:00:00:02"),
    )
