"""Configurations and locks of a folder laid out like a node."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

import pytest

from vzdump_qemu.errors import ConfigError, VmLocked, VmNotFound
from vzdump_qemu.node import locks, open_node

RAW = (
    b"# a note\r\nname: web\nscsi0: local:100/vm-100-disk-0.raw\nodd \xff line\n"
    b"\n[PENDING]\ncores: 2\n"
)


@pytest.fixture
def tree(tmp_path):
    directory = tmp_path / "etc/pve/nodes/pve1/qemu-server"
    directory.mkdir(parents=True)
    (directory / "100.conf").write_bytes(RAW)
    return tmp_path


@pytest.fixture
def config(tree):
    return tree / "etc/pve/nodes/pve1/qemu-server/100.conf"


@pytest.fixture
async def node(tree):
    async with open_node(str(tree)) as opened:
        yield opened


async def test_node_is_named_by_its_only_directory(node):
    assert node.name == "pve1"


async def test_open_node_elsewhere_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"is not laid out like a PVE node$"):
        open_node(str(tmp_path))


async def test_list_vmids_takes_configurations_only(node, config):
    for name in ("9.conf", "099.conf", "1000.conf", "100.conf.tmp.7", "x.conf", "101.fw"):
        (config.parent / name).touch()
    (config.parent / "999999999.conf").touch()
    assert await node.list_vmids() == [100, 1000, 999999999]


async def test_read_vm_config_returns_all_bytes(node):
    assert await node.read_vm_config(100) == RAW


async def test_read_vm_config_missing_is_not_found(node):
    with pytest.raises(VmNotFound) as caught:
        await node.read_vm_config(101)
    assert str(caught.value) == "unable to find configuration file for VM 101 on node 'pve1'"


async def test_read_vm_config_over_limit_is_refused(node, config):
    config.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match=r"is larger than 1048576 bytes$"):
        await node.read_vm_config(100)


async def test_read_firewall_missing_is_none(node, tree):
    assert await node.read_firewall(100) is None
    (tree / "etc/pve/firewall").mkdir()
    (tree / "etc/pve/firewall/100.fw").write_bytes(b"[OPTIONS]\n")
    assert await node.read_firewall(100) == b"[OPTIONS]\n"


async def test_vm_lock_set_and_cleared_keeps_every_other_byte(node, config):
    await node.set_vm_lock(100)
    locked = config.read_bytes()
    assert b"lock: backup\n" in locked
    assert locked.replace(b"lock: backup\n", b"") == RAW
    await node.clear_vm_lock(100)
    assert config.read_bytes() == RAW
    assert os.listdir(config.parent) == ["100.conf"]


@pytest.mark.parametrize("lock", ["backup", "suspended", "snapshot-delete"])
async def test_set_vm_lock_of_locked_vm_is_refused(node, config, lock):
    raw = f"lock: {lock}\n".encode() + RAW
    config.write_bytes(raw)
    with pytest.raises(VmLocked, match=rf"^VM is locked \({lock}\)$"):
        await node.set_vm_lock(100)
    assert config.read_bytes() == raw


async def test_set_vm_lock_in_a_snapshot_section_does_not_count(node, config):
    config.write_bytes(RAW + b"\n[before]\nlock: snapshot\n")
    await node.set_vm_lock(100)
    main_section, _, other = config.read_bytes().partition(b"[before]")
    assert b"lock: backup\n" in main_section
    assert other == b"\nlock: snapshot\n"


async def test_clear_vm_lock_without_lock_is_refused(node):
    with pytest.raises(ConfigError) as caught:
        await node.clear_vm_lock(100)
    assert str(caught.value) == "no lock found trying to remove 'backup'  lock"


async def test_clear_vm_lock_of_another_is_refused(node, config):
    config.write_bytes(b"lock: migrate\n" + RAW)
    with pytest.raises(ConfigError) as caught:
        await node.clear_vm_lock(100)
    assert str(caught.value) == "found lock 'migrate' trying to remove 'backup' lock"


async def test_set_vm_lock_while_another_holds_the_flock_is_refused(
    node, tree, config, monkeypatch
):
    monkeypatch.setattr(locks, "VM_LOCK_TIMEOUT_S", 0.1)
    path = tree / "var/lock/qemu-server/lock-100.conf"
    path.parent.mkdir(parents=True)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(VmLocked, match=rf"^can't lock file '{path}' - got timeout$"):
        await node.set_vm_lock(100)
    os.close(descriptor)
    assert config.read_bytes() == RAW


async def test_record_fleecing_is_written_and_removed(node, config):
    await node.record_fleecing(100, ["local:100/vm-100-fleece-0.qcow2", "thin:vm-100-fleece-1"])
    assert config.read_bytes().startswith(RAW.rstrip(b"\n"))
    assert (
        b"[special:fleecing]\n"
        b"fleecing-images: local:100/vm-100-fleece-0.qcow2,thin:vm-100-fleece-1\n"
    ) in config.read_bytes()
    await node.record_fleecing(100, [])
    assert config.read_bytes() == RAW


async def test_global_lock_writes_the_task_id_and_excludes_a_second_job(node, tree):
    path = tree / "var/run/vzdump.lock"
    node.announce_job(task_id="100")
    async with node.hold_global_lock(timeout_s=0):
        upid = (tree / "var/run/vzdump.pid").read_text()
        assert re.fullmatch(
            rf"UPID:pve1:{os.getpid():08X}:[0-9A-F]{{8,9}}:[0-9A-F]{{8}}:vzdump:100:root@pam:", upid
        )
        with pytest.raises(VmLocked) as caught:
            async with node.hold_global_lock(timeout_s=0):
                pass
    assert str(caught.value) == f"can't acquire lock '{path}' (wait = 0)"


async def test_machine_that_never_ran_is_not_running(node):
    machine = node.machine(100)
    assert machine.vmid == 100
    assert not await machine.is_running()
    async with machine.keep_alive():
        pass


async def test_configuration_behind_a_link_stays_behind_it(tree, config, node):
    """The local node's directory is a link; the rewrite must not replace what it points to."""
    real = tree / "elsewhere.conf"
    config.rename(real)
    config.symlink_to(real)
    await node.set_vm_lock(100)
    assert config.is_symlink()
    assert b"lock: backup" in Path(real).read_bytes()


async def test_row_1_5_pid_file_is_of_jobs_alone(node, tree):
    """Who puts back what a dead job left must not be ended by ``--stop``."""
    async with node.hold_global_lock(timeout_s=0):
        assert not (tree / "var/run/vzdump.pid").exists()


async def test_row_1_6_8_job_without_an_error_takes_its_pid_file_away(node, tree):
    node.announce_job()
    async with node.hold_global_lock(timeout_s=0):
        pass
    assert (tree / "var/run/vzdump.pid").exists()
    await node.forget_job()
    assert not (tree / "var/run/vzdump.pid").exists()
    await node.forget_job()


async def test_row_1_6_8_pid_file_of_another_job_stays(node, tree):
    node.announce_job()
    async with node.hold_global_lock(timeout_s=0):
        await node.forget_job()
        assert (tree / "var/run/vzdump.pid").exists()
    (tree / "var/run/vzdump.pid").write_text("UPID:of:another")
    await node.forget_job()
    assert (tree / "var/run/vzdump.pid").read_text() == "UPID:of:another"
