"""Archives made by the platform's `vma create`: disk-less VMs, and templates where asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

from tests.engine.world import World
from vzdump_qemu import events
from vzdump_qemu.formats.vma import ConfigBlob, VmaDevice, VmaWriter
from vzdump_qemu.plan.options import BackupOptions, DataPathChoice

OPTIONS = BackupOptions(compressor=("zstd",), archive_extension=".zst")
TEMPLATE = "name: t\nscsi0: local:100/vm-100-disk-0.raw,size=8M\ntemplate: 1\n"


class VmaTool:
    """A `vma` that packs what its arguments name into the descriptor it was given."""

    def __init__(self, world: World, *, status: int = 0) -> None:
        self._world = world
        self._status = status

    async def __call__(
        self, argv: Sequence[str], pass_fds: tuple[int, ...]
    ) -> tuple[int, Sequence[str]]:
        [fd] = pass_fds
        assert argv[-1] == f"exec:cat > /dev/fd/{fd}"
        sink = self._world.host.descriptors.sink(fd)
        if self._status == 0:
            for part in self._stream(argv):
                sink.write(memoryview(part))
        return self._status, ("vma: progress 100%",)

    def _stream(self, argv: Sequence[str]) -> list[bytes]:
        disks, configs = [], []
        for option, value in pairwise(argv):
            if option == "-c":
                data = self._world.files.read(value)
                configs.append(ConfigBlob(name=value.rpartition("/")[2], data=data))
            if option == "-d":
                name, _, path = value.removeprefix("format=raw:").partition("=")
                disks.append((name, self._world.host.images[path]))
        devices = [
            VmaDevice(vma_dev_id=number, name=name, size_bytes=disk.size_bytes)
            for number, (name, disk) in enumerate(disks, 1)
        ]
        writer = VmaWriter(b"u" * 16, 1, configs, devices)
        parts = [writer.header_bytes()]
        for device, (_, disk) in zip(devices, disks, strict=True):
            data = bytes(disk.read(0, disk.size_bytes))
            parts += [bytes(part) for part in writer.add_clusters(device.vma_dev_id, 0, data)]
        return [*parts, *(bytes(part) for part in writer.finish())]


def _install(world: World, *, status: int = 0) -> None:
    world.state = None
    world.options = OPTIONS
    world.commands.programs["vma"] = VmaTool(world, status=status)


def test_disk_less_vm_goes_through_the_platforms_tool(world: World) -> None:
    _install(world)
    world.config, world.images = "name: empty\n", {}
    result = world.run()
    assert result is not None and result.error is None, result
    [_, argv] = world.commands.calls
    directory = "/var/lib/vz/dump/vzdump-qemu-100-2026_01_02-03_04_06.tmp"
    assert list(argv[:5]) == ["/usr/bin/vma", "create", "-v", "-c", f"{directory}/qemu-server.conf"]
    assert world.told_of(events.OutputSeen)[0].line == "vma: progress 100%"
    assert world.restored() == {}
    world.assert_nothing_left()


def test_firewall_rules_are_a_file_of_their_own(world: World) -> None:
    _install(world)
    world.config, world.images = "name: empty\n", {}
    world.arrange = lambda world: world.node.firewalls.update({100: b"[OPTIONS]\n"})
    result = world.run()
    assert result is not None and result.error is None, result
    assert list(world.commands.calls[-1][5:7]) == [
        "-c",
        "/var/lib/vz/dump/vzdump-qemu-100-2026_01_02-03_04_06.tmp/qemu-server.fw",
    ]


def test_path_with_metacharacters_never_reaches_a_shell(world: World) -> None:
    _install(world)
    world.config, world.images = "name: empty\n", {}
    target = replace(OPTIONS.target, dump_directory="/var/a b;$(c)")
    world.options = replace(OPTIONS, target=target)
    world.arrange = lambda world: world.files.make_directories("/var/a b;$(c)")
    result = world.run()
    assert result is not None and result.error is None, result
    assert result.archive_path.startswith("/var/a b;$(c)/vzdump-qemu-100-")
    assert "$(c)" not in world.commands.calls[-1][-1]


def test_template_is_packed_by_the_tool_where_asked_for(world: World) -> None:
    _install(world)
    world.config = TEMPLATE
    world.options = replace(OPTIONS, data_path=DataPathChoice.EXTERNAL)
    result = world.run()
    assert result is not None and result.error is None, result
    path = "/var/lib/vz/images/100/vm-100-disk-0.raw"
    disk = world.host.images[path]
    assert world.restored() == {"drive-scsi0": bytes(disk.read(0, disk.size_bytes))}
    assert f"format=raw:drive-scsi0={path}" in world.commands.calls[-1]
    assert "QemuStarting" not in world.names()


def test_template_goes_through_a_paused_qemu_otherwise(world: World) -> None:
    _install(world)
    world.config = TEMPLATE
    result = world.run()
    assert result is not None and result.error is None, result
    assert [argv[0] for argv in world.commands.calls] == ["/usr/bin/ionice"]
    assert "QemuStarting" in world.names() and "QemuStopping" in world.names()


def test_template_without_the_tool_is_refused_with_a_hint(world: World) -> None:
    world.state = None
    world.config = TEMPLATE
    world.options = replace(OPTIONS, data_path=DataPathChoice.EXTERNAL)
    result = world.run()
    assert result is not None and result.error is not None
    assert "needs the 'vma' tool" in str(result.error)
    assert "--data-path" in result.error.hint


@pytest.mark.parametrize(("status", "text"), [(1, "exit code 1"), (-9, "got signal 9")])
def test_tool_that_fails_fails_the_run(world: World, status: int, text: str) -> None:
    _install(world, status=status)
    world.config, world.images = "name: empty\n", {}
    world.assert_failed_clean(world.run(), text)
