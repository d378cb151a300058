"""A VM's configuration, written from what QEMU tells."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.formats.described_vm import (
    DescribedDrive,
    DescribedVm,
    assign_keys,
    render_described_vm,
)
from vzdump_qemu.formats.vm_config import parse_vm_config

MIB = 1 << 20


def drive(bus: str = "virtio", path: str = "/machine/a", **values: object) -> DescribedDrive:
    made = DescribedDrive(bus=bus, device_path=path, names=(), label=path, size_bytes=4 * MIB)
    return replace(made, **values)  # type: ignore[arg-type]


def vm(*drives: DescribedDrive, **values: object) -> DescribedVm:
    made = DescribedVm(
        name="web",
        uuid="0ddba11a-0000-4000-8000-00000000cafe",
        qemu_version="7.2.22",
        arch="x86_64",
        machine="pc-q35-7.2",
        memory_bytes=64 * MIB,
        socket_count=2,
        core_count=3,
        has_agent=False,
        has_firmware_flash=False,
        nics=(),
        drives=assign_keys(drives),
    )
    return replace(made, **values)  # type: ignore[arg-type]


def lines(described: DescribedVm) -> list[str]:
    raw = render_described_vm(described)
    assert parse_vm_config(raw, vmid=100).warnings == ()
    return raw.decode().splitlines()


def keys(*drives: DescribedDrive) -> list[str]:
    return [each.key for each in assign_keys(drives)]


def test_plain_vm_is_a_configuration_without_a_warning() -> None:
    assert lines(vm(drive(file_name="/srv/web.raw"))) == [
        "#VM 'web' of QEMU 7.2.22, described from its monitor",
        "boot: order=virtio0",
        "cores: 3",
        "machine: pc-q35-7.2",
        "memory: 64",
        "name: web",
        "ostype: other",
        "smbios1: uuid=0ddba11a-0000-4000-8000-00000000cafe",
        "sockets: 2",
        "virtio0: /srv/web.raw,size=4M",
    ]


def test_vm_without_disks_name_and_uuid_is_a_configuration() -> None:
    text = lines(vm(name="", uuid=""))
    assert text[0].startswith("#A VM of QEMU")
    assert not [line for line in text if line.startswith(("name", "smbios1", "boot", "scsihw"))]


def test_keys_are_counted_on_each_bus_in_the_order_of_places() -> None:
    drives = (
        drive("scsi", "/b", position=(0, 5)),
        drive("virtio", "/c"),
        drive("scsi", "/a", position=(0, 1)),
        drive("sata", "/d"),
    )
    by_path = {each.device_path: each.key for each in assign_keys(drives)}
    assert by_path == {"/a": "scsi0", "/b": "scsi1", "/c": "virtio0", "/d": "sata0"}


def test_name_that_is_a_key_of_the_bus_is_kept() -> None:
    drives = (drive("scsi", "/a"), drive("scsi", "/b", names=("x", "drive-scsi0")))
    assert {each.device_path: each.key for each in assign_keys(drives)} == {
        "/a": "scsi1",
        "/b": "scsi0",
    }


def test_name_that_is_a_key_of_another_bus_is_not_kept() -> None:
    assert keys(drive("virtio", names=("scsi7",))) == ["virtio0"]


def test_name_beyond_the_last_key_is_not_kept() -> None:
    assert keys(drive("virtio", names=("virtio16",))) == ["virtio0"]


def test_drive_beyond_the_last_key_of_its_bus_becomes_a_scsi_disk() -> None:
    assert keys(*(drive("ide", f"/{index}") for index in range(5)))[-1] == "scsi0"


def test_too_many_disks_are_refused_by_name() -> None:
    drives = [drive("scsi", f"/{index:02}") for index in range(32)]
    with pytest.raises(ConfigError, match="no drive key is left for '/31'"):
        assign_keys(drives)


def test_path_that_is_no_plain_word_is_not_written() -> None:
    drives = (
        drive(path="/a", file_name="/srv/a b,c.raw"),
        drive(path="/b", file_name='json:{"driver": "nbd"}'),
        drive(path="/c", file_name="relative.raw"),
    )
    text = lines(vm(*drives))
    assert [line for line in text if line.startswith("virtio")] == [
        "virtio0: qemu:virtio0,size=4M",
        "virtio1: qemu:virtio1,size=4M",
        "virtio2: qemu:virtio2,size=4M",
    ]


def test_one_file_behind_two_devices_has_two_names() -> None:
    first, second = assign_keys(
        (drive(path="/a", file_name="/x"), drive(path="/b", file_name="/x"))
    )
    assert (first.volid, second.volid) == ("/x", "qemu:virtio1")


def test_properties_of_a_disk_are_those_of_its_bus() -> None:
    drives = (
        drive("scsi", "/a", file_name="/a", read_only=True, serial="S-1", excluded=True),
        drive("sata", "/b", file_name="/b", read_only=True, serial="QM00003"),
        drive("efidisk", "/c", file_name="/c", serial="S-1"),
    )
    text = lines(vm(*drives, has_firmware_flash=True))
    assert "scsi0: /a,backup=0,ro=1,serial=S-1,size=4M" in text
    assert "sata0: /b,size=4M" in text
    assert "efidisk0: /c,size=4M" in text
    assert "bios: ovmf" in text


def test_cd_drive_is_kept_without_its_medium() -> None:
    assert "ide0: none,media=cdrom" in lines(vm(drive("ide", is_cdrom=True, file_name="/x.iso")))


@pytest.mark.parametrize(
    ("controller", "hardware"),
    [
        ("virtio-scsi-pci", "virtio-scsi-pci"),
        ("lsi53c895a", "lsi"),
        ("usb-storage", "virtio-scsi-pci"),
    ],
)
def test_scsi_controller_is_that_of_the_disks(controller: str, hardware: str) -> None:
    assert f"scsihw: {hardware}" in lines(vm(drive("scsi", controller=controller)))


def test_boot_order_follows_the_devices_indices() -> None:
    drives = (
        drive("virtio", "/a"),
        drive("scsi", "/b", boot_index=2),
        drive("ide", "/c", boot_index=1, is_cdrom=True),
    )
    assert "boot: order=ide0;scsi0" in lines(vm(*drives))


def test_boot_disk_without_an_index_is_where_a_bios_looks_first() -> None:
    drives = (drive("scsi", "/a"), drive("ide", "/b"), drive("ide", "/c", is_cdrom=True))
    assert "boot: order=ide0" in lines(vm(*drives))


@pytest.mark.parametrize(
    ("machine", "line"),
    [
        ("pc-i440fx-9.1", "machine: pc-i440fx-9.1"),
        ("pc-q35-rhel9.4.0", "machine: q35"),
        ("pc-i440fx-jammy", ""),
        ("microvm", ""),
    ],
)
def test_machine_is_named_only_as_the_platform_knows_it(machine: str, line: str) -> None:
    found = [text for text in lines(vm(machine=machine)) if text.startswith("machine")]
    assert found == ([line] if line else [])


@pytest.mark.parametrize(
    ("name", "host"),
    [("web 1", "web-1"), ("a_b.c", "a-b.c"), ("--x--", "x"), ("é", ""), ("a" * 70, "a" * 63)],
)
def test_name_is_made_a_host_name(name: str, host: str) -> None:
    found = [text for text in lines(vm(name=name)) if text.startswith("name: ")]
    assert found == ([f"name: {host}"] if host else [])


def test_network_cards_keep_model_and_address() -> None:
    nics = (("virtio-net-pci", "52:54:00:12:34:aa"), ("e1000", "52:54:00:12:34:ab"))
    text = lines(vm(nics=nics, has_agent=True, arch="aarch64"))
    assert "net0: virtio=52:54:00:12:34:AA" in text
    assert "net1: e1000=52:54:00:12:34:AB" in text
    assert "agent: 1" in text
    assert "arch: aarch64" in text
