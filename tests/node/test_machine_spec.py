"""From configurations to machines."""

from __future__ import annotations

import pytest

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.formats.vm_config import parse_vm_config
from vzdump_qemu.node.machine_spec import make_machine_spec
from vzdump_qemu.ports import VolumeFacts
from vzdump_qemu.qemu.command_line import DriveSpec


class FakeStorages:
    """Every volume exists, as raw file of one name."""

    def __init__(self) -> None:
        self.activated: list[str] = []

    async def activate(self, volids):
        self.activated += volids

    async def describe(self, volid):
        return VolumeFacts(
            volid=volid,
            storage_id="local",
            path=f"/v/{volid}",
            size_bytes=1024,
            format="raw",
            is_block_device=False,
        )


async def _make(text: str):
    storages = FakeStorages()
    config = parse_vm_config(text.encode(), vmid=100)
    return await make_machine_spec(config, storages), storages


async def test_machine_spec_defaults_are_the_platforms():
    spec, _ = await _make("name: web\n")
    assert (spec.memory_mib, spec.core_count, spec.socket_count) == (512, 1, 1)
    assert (spec.name, spec.has_agent, spec.has_serial, spec.is_template) == (
        "web", False, False, False,
    )  # fmt: skip
    assert spec.drives == ()


async def test_machine_spec_takes_what_the_configuration_says():
    spec, _ = await _make(
        "agent: 1\nargs: -kernel /boot/x\ncores: 4\nmemory: 2048\nserial0: socket\nsockets: 2\n"
        "template: 1\n"
    )
    assert (spec.memory_mib, spec.core_count, spec.socket_count) == (2048, 4, 2)
    assert spec.has_agent and spec.has_serial and spec.is_template
    assert spec.extra_arguments == "-kernel /boot/x"


async def test_machine_spec_drives_are_activated_and_tpm_state_left_out():
    spec, storages = await _make(
        "efidisk0: local:100/e.raw\nide2: none,media=cdrom\nscsi0: local:100/a.raw,ro=1\n"
        "tpmstate0: local:100/t.raw\n"
    )
    assert storages.activated == ["local:100/a.raw", "local:100/e.raw"]
    assert spec.drives == (
        DriveSpec(key="ide2", path="", format="raw", is_cdrom=True),
        DriveSpec(key="scsi0", path="/v/local:100/a.raw", format="raw", read_only=True),
        DriveSpec(key="efidisk0", path="/v/local:100/e.raw", format="raw"),
    )


async def test_machine_spec_unreadable_number_is_refused():
    with pytest.raises(ConfigError, match=r"^unable to parse value of 'cores' - '0'$"):
        await _make("cores: 0\n")
