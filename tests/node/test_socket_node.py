"""The node of one VM that is known by its sockets: who it is, its locks, its limits."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from vzdump_qemu.errors import (
    ConfigError,
    PowerError,
    QmpUnreachable,
    StorageError,
    VmLocked,
    VmNotFound,
)
from vzdump_qemu.node.opening import open_socket_vm
from vzdump_qemu.node.socket_layout import SocketLayout, is_fleecing_path, state_directory
from vzdump_qemu.node.socket_node import SocketNode, SocketVmOptions
from vzsim.pytest_plugin import FakeQmp

Open = Callable[..., SocketNode]


@pytest.fixture
def opened(fake_qmp: FakeQmp) -> Open:
    """Opens the node of the fake machine's sockets."""
    fake_qmp.dialect = "upstream"

    def open_it(**options: object) -> SocketNode:
        values: dict[str, object] = {
            "qmp_socket": str(fake_qmp.directory / "qmp.sock"),
            "state_directory": str(fake_qmp.directory / "state"),
            **options,
        }
        return open_socket_vm(SocketVmOptions(**values))  # type: ignore[arg-type]

    return open_it


async def test_vm_is_described_as_a_configuration(fake_qmp: FakeQmp, opened: Open) -> None:
    async with fake_qmp.serving():
        node = opened(vmid=4711, name="web")
        text = (await node.read_vm_config(4711)).decode()
    assert "scsi0: qemu:scsi0,size=1M\n" in text
    assert "name: web\n" in text
    assert list(await node.list_vmids()) == [4711]


async def test_disk_is_known_by_its_device(fake_qmp: FakeQmp, opened: Open) -> None:
    async with fake_qmp.serving():
        node = opened()
        await node.read_vm_config(node.vmid)
    facts = await node.storages.describe("qemu:scsi0")
    assert facts.device_path == "/machine/peripheral/scsi0"
    assert facts.size_bytes == 1 << 20
    with pytest.raises(StorageError, match="no such volume 'qemu:scsi1'"):
        await node.storages.describe("qemu:scsi1")


async def test_another_number_is_not_found(opened: Open) -> None:
    with pytest.raises(VmNotFound, match="VM 5 is not known by these sockets"):
        await opened(vmid=4711).read_vm_config(5)


async def test_another_uuid_is_refused(fake_qmp: FakeQmp, opened: Open) -> None:
    wanted = "0ddba11a-0000-4000-8000-00000000cafe"
    async with fake_qmp.serving() as served:
        with pytest.raises(VmNotFound, match=f"the VM behind '{served.qmp_path}' is '', not"):
            node = opened(name=wanted)
            await node.read_vm_config(node.vmid)


def test_number_of_a_socket_is_always_the_same_and_its_own(opened: Open) -> None:
    first = opened()
    assert first.vmid == opened().vmid
    assert first.vmid != opened(qmp_socket="/run/other").vmid
    assert 100_000_000 <= first.vmid <= 999_999_999


def test_socket_is_the_same_by_a_link(fake_qmp: FakeQmp, opened: Open) -> None:
    link = fake_qmp.directory / "link"
    link.symlink_to(fake_qmp.directory / "qmp.sock")
    assert opened(qmp_socket=str(link)).vmid == opened().vmid


@pytest.mark.parametrize("vmid", [99, 1_000_000_000])
def test_number_that_no_vm_can_have_is_refused(opened: Open, vmid: int) -> None:
    with pytest.raises(ConfigError, match=f"VM ID {vmid} is not between"):
        opened(vmid=vmid)


# -- what is checked beforehand ----------------------------------------------------------------


async def test_missing_socket_is_refused_with_the_way_to_make_one(opened: Open) -> None:
    with pytest.raises(ConfigError, match="there is no QMP socket") as caught:
        await opened().check()
    assert "-qmp unix:" in caught.value.hint


async def test_file_that_is_no_socket_is_refused(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(ConfigError, match="is not a socket"):
        await opened(qmp_socket=str(path)).check()


async def test_socket_without_a_listener_is_told(fake_qmp: FakeQmp, opened: Open) -> None:
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(fake_qmp.directory / "qmp.sock"))
    node = opened()
    with pytest.raises(QmpUnreachable, match="nobody listens at QMP socket"):
        await node.check()
    assert not await node.machine(node.vmid).is_running()


async def test_missing_agent_socket_is_refused(fake_qmp: FakeQmp, opened: Open) -> None:
    async with fake_qmp.serving():
        with pytest.raises(ConfigError, match="there is no agent socket '/nope'"):
            await opened(agent_socket="/nope").check()


async def test_state_directory_too_deep_for_a_socket_is_refused(
    fake_qmp: FakeQmp, opened: Open
) -> None:
    async with fake_qmp.serving():
        with pytest.raises(ConfigError, match="too long for a socket"):
            await opened(state_directory=f"/tmp/{'d' * 100}").check()


async def test_vm_in_order_has_nothing_to_warn_of(fake_qmp: FakeQmp, opened: Open) -> None:
    async with fake_qmp.serving() as served:
        assert await opened(agent_socket=served.agent_path).check() == ()


# -- locks, power, images ----------------------------------------------------------------------


async def test_second_job_on_the_same_socket_is_kept_out(opened: Open, tmp_path: Path) -> None:
    first, second = opened(), opened(vmid=4711, state_directory=str(tmp_path))
    async with first.hold_global_lock(timeout_s=0):
        with pytest.raises(VmLocked, match="another backup of the VM behind"):
            async with second.hold_global_lock(timeout_s=0):
                pass
    async with second.hold_global_lock(timeout_s=0):
        pass


async def test_directory_of_the_journal_is_the_users_alone(opened: Open) -> None:
    node = opened()
    async with node.hold_global_lock(timeout_s=0):
        assert stat.S_IMODE(os.stat(node.journal_directory).st_mode) == 0o700


async def test_vm_is_suspended_and_resumed_and_never_stopped(
    fake_qmp: FakeQmp, opened: Open
) -> None:
    async with fake_qmp.serving():
        machine = opened().machine(4711)
        assert await machine.is_running()
        await machine.power.suspend()
        async with machine.connect_qmp(timeout_s=10) as qmp:
            assert (await qmp.execute("query-status", timeout_s=10))["status"] == "paused"
        await machine.power.resume()
        await machine.power.resume()
        async with machine.connect_qmp(timeout_s=10) as qmp:
            assert (await qmp.execute("query-status", timeout_s=10))["status"] == "running"
        for act in (machine.power.stop, machine.power.start, machine.power.start_paused):
            with pytest.raises(PowerError, match="known only by its sockets cannot be"):
                await act()
        with pytest.raises(PowerError, match="cannot be stopped"):
            await machine.power.shut_down(timeout_s=1)


async def test_scratch_image_is_made_and_removed_by_its_path(opened: Open, tmp_path: Path) -> None:
    storages = opened(fleecing_directory=str(tmp_path)).storages
    facts = await storages.allocate_fleecing("", vmid=4711, name="0", size_bytes=1 << 20)
    assert facts.volid == storages.fleecing_volid("", vmid=4711, name="0")
    assert [path.name for path in tmp_path.iterdir()] == [os.path.basename(facts.path)]
    await storages.free(facts.volid)
    await storages.free(facts.volid)
    assert list(tmp_path.iterdir()) == []


async def test_nothing_but_scratch_images_is_removed(opened: Open, tmp_path: Path) -> None:
    kept = tmp_path / "vm-100-disk-0.qcow2"
    kept.touch()
    with pytest.raises(StorageError, match="is no scratch image and is not removed"):
        await opened().storages.free(str(kept))
    assert kept.exists()


async def test_scratch_image_needs_its_directory(opened: Open, tmp_path: Path) -> None:
    storages = opened(fleecing_directory=str(tmp_path / "none")).storages
    with pytest.raises(StorageError, match="does not exist"):
        await storages.allocate_fleecing("", vmid=4711, name="0", size_bytes=1 << 20)


# -- paths -------------------------------------------------------------------------------------


def test_state_of_root_is_the_systems() -> None:
    assert state_directory({"XDG_STATE_HOME": "/x"}, user_id=0) == "/var/lib/vzdump-qemu"


def test_state_of_a_user_is_the_users_own() -> None:
    assert state_directory({"XDG_STATE_HOME": "/x/"}, user_id=7) == "/x/vzdump-qemu"
    home = {"HOME": "/home/u", "XDG_STATE_HOME": "not/absolute"}
    assert state_directory(home, user_id=7) == "/home/u/.local/state/vzdump-qemu"
    with pytest.raises(ConfigError, match="no directory for the journal"):
        state_directory({}, user_id=7)


def test_scratch_images_of_two_sockets_have_two_names() -> None:
    first, second = (
        SocketLayout(
            qmp_socket=path, agent_socket="", state_directory="/s", fleecing_directory="/f"
        )
        for path in ("/run/a", "/run/b")
    )
    assert first.fleecing_path("0") != second.fleecing_path("0")
    assert is_fleecing_path(first.fleecing_path("12"))
    assert not is_fleecing_path("/f/vzdump-fleece-zz-0.qcow2")
