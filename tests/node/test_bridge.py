"""The Perl child and its client: the real script, with stubs for the platform's library."""

from __future__ import annotations

import asyncio

import pytest

from vzdump_qemu.errors import PowerError, StorageError
from vzdump_qemu.node.bridge import PveBridge


def _call(bridge, method, params, *, timeout_s=20.0, error_type=StorageError):
    return bridge.call(method, params, timeout_s=timeout_s, error_type=error_type)


async def test_volume_facts_of_file_storage(bridge, stub_calls):
    reply = await _call(bridge, "volume_facts", {"volid": "nas:100/vm-100-disk-0.qcow2"})
    assert reply.result == {
        "volid": "nas:100/vm-100-disk-0.qcow2",
        "storage_id": "nas",
        "path": "/mnt/pve/nas/images/100/vm-100-disk-0.qcow2",
        "size_bytes": 4294967296,
        "format": "qcow2",
        "is_block_device": False,
    }
    assert stub_calls() == [["volume_size_info", "nas:100/vm-100-disk-0.qcow2", 5, "scalar"]]


async def test_what_the_library_prints_travels_beside_the_reply(bridge):
    reply = await _call(bridge, "volume_facts", {"volid": "thin:vm-100-disk-0"})
    assert reply.lines == ["Formatting things", "a warning of the library", "printed by a program"]
    assert reply.result["format"] == "raw"
    again = await _call(bridge, "activate_volumes", {"volids": []})
    assert again.lines == []


async def test_volume_without_size_is_missing(bridge):
    with pytest.raises(StorageError, match=r"^no such volume 'thin:missing'$"):
        await _call(bridge, "volume_facts", {"volid": "thin:missing"})


async def test_library_error_is_raised_and_child_goes_on(bridge):
    with pytest.raises(StorageError, match=r"^volume 'thin:missing' does not exist$"):
        await _call(bridge, "activate_volumes", {"volids": ["thin:missing"]})
    reply = await _call(bridge, "backup_directory", {"storage_id": "nas"})
    assert reply.result == "/mnt/pve/nas/dump"


async def test_backup_directory_of_storage_without_backups_is_refused(bridge):
    with pytest.raises(StorageError) as caught:
        await _call(bridge, "backup_directory", {"storage_id": "thin"})
    assert str(caught.value) == "can't use storage 'thin' for backups - wrong content type"


async def test_backup_directory_of_unknown_storage_is_refused(bridge):
    with pytest.raises(StorageError, match=r"^storage 'nope' does not exist$"):
        await _call(bridge, "backup_directory", {"storage_id": "nope"})


async def test_allocate_rounds_up_to_kib_and_activates(bridge, stub_calls):
    params = {"storage_id": "nas", "vmid": 100, "format": "qcow2", "size_bytes": 1025}
    reply = await _call(bridge, "allocate", params | {"name": "vm-100-fleece-0.qcow2"})
    volid = "nas:100/vm-100-fleece-0.qcow2"
    assert reply.result["volid"] == volid
    assert stub_calls()[:3] == [
        ["activate_storage", "nas"],
        ["vdisk_alloc", "nas", 100, "qcow2", "vm-100-fleece-0.qcow2", 2],
        ["activate_volumes", [volid]],
    ]


async def test_free_deactivates_first(bridge, stub_calls):
    await _call(bridge, "free", {"volid": "thin:vm-100-fleece-0"})
    assert stub_calls() == [
        ["deactivate_volumes", ["thin:vm-100-fleece-0"]],
        ["vdisk_free", "thin:vm-100-fleece-0"],
    ]


async def test_free_of_missing_volume_does_nothing(bridge, stub_calls):
    await _call(bridge, "free", {"volid": "thin:missing"})
    assert stub_calls() == []


async def test_vm_start_paused_skips_lock_and_template_check(bridge, stub_calls):
    reply = await _call(bridge, "vm_start_paused", {"vmid": 100}, error_type=PowerError)
    assert reply.lines == ["generating cloud-init ISO"]
    options = {"paused": 1, "skiplock": 1, "skiptemplate": 1}
    assert stub_calls() == [["vm_start", "HASH", 100, options, None]]


async def test_vm_start_failure_is_one_line(bridge):
    with pytest.raises(PowerError) as caught:
        await _call(bridge, "vm_start_paused", {"vmid": 666}, error_type=PowerError)
    assert str(caught.value) == "start failed: command 'kvm' failed: got timeout"


async def test_vm_stop_skips_lock_and_forces(bridge, stub_calls):
    reply = await _call(bridge, "vm_stop", {"vmid": 100}, error_type=PowerError)
    assert reply.lines == ["trying to acquire lock...", " OK"]
    assert stub_calls() == [["vm_stop", 100, 1, 0, None, 0, 1, None]]


async def test_unknown_method_is_refused(bridge):
    with pytest.raises(StorageError, match=r"^no method 'format_disk'$"):
        await _call(bridge, "format_disk", {})


async def test_call_out_of_time_ends_child_and_next_call_gets_a_new_one(bridge):
    with pytest.raises(StorageError, match=r"^activate_volumes failed - got timeout$"):
        await _call(bridge, "activate_volumes", {"volids": ["thin:hanging"]}, timeout_s=0.5)
    assert bridge._process is None
    reply = await _call(bridge, "backup_directory", {"storage_id": "nas"})
    assert reply.result == "/mnt/pve/nas/dump"


async def test_child_that_dies_is_an_error_and_next_call_gets_a_new_one(bridge):
    with pytest.raises(StorageError, match=r"the Perl child ended without an answer$"):
        await _call(bridge, "activate_volumes", {"volids": ["thin:dying"]})
    assert (await _call(bridge, "activate_volumes", {"volids": []})).result is None


async def test_cancelled_call_ends_child(bridge):
    await _call(bridge, "activate_volumes", {"volids": []})
    process = bridge._process
    task = asyncio.create_task(_call(bridge, "activate_volumes", {"volids": ["thin:hanging"]}))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert process.returncode is not None


async def test_missing_perl_is_an_error():
    bridge = PveBridge(("/nonexistent/perl",))
    with pytest.raises(StorageError, match=r"No such file or directory"):
        await _call(bridge, "activate_volumes", {"volids": []})


async def test_missing_library_is_an_error(stub_calls):
    bridge = PveBridge(("perl",))
    with pytest.raises(StorageError, match=r"^Can't locate PVE/Storage.pm"):
        await _call(bridge, "activate_volumes", {"volids": []})
    await bridge.close()


async def test_close_ends_and_reaps_child(bridge):
    await _call(bridge, "activate_volumes", {"volids": []})
    process = bridge._process
    await bridge.close()
    await bridge.close()
    assert process.returncode == 0


def _notify(bridge, **fields):
    params = {"severity": "error", "template": "vzdump", "data": {"total-size": 5}}
    return _call(bridge, "notify", {**params, "fields": {"type": "vzdump", **fields}})


async def test_notify_adds_the_names_that_the_library_knows(bridge, stub_calls):
    await _notify(bridge, hostname="pve1")
    [call] = stub_calls()
    names = {"hostname": "pve1", "fqdn": "pve1.example.com", "cluster-name": "prod"}
    assert call == [
        *("notify", "error", "vzdump", {"total-size": 5, **names}),
        *({"type": "vzdump", "hostname": "pve1"}, None),
    ]


async def test_notify_that_reaches_nobody_says_so_in_what_it_prints(bridge):
    reply = await _notify(bridge, **{"job-id": "unheard"})
    assert reply.lines == ["ERROR: could not notify via target `mail-to-root`: no address"]


async def test_notify_without_configuration_is_an_error(bridge):
    with pytest.raises(StorageError, match=r"^could not read notifications.cfg$"):
        await _notify(bridge, **{"job-id": "dying"})
