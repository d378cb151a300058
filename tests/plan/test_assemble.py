"""The stored configuration: reference vector and edge rules."""

from __future__ import annotations

from vzdump_qemu.plan.assemble import MapEntry, assemble_config

RAW = b"""\
#prod%3A web
bios: ovmf
efidisk0: local-lvm:vm-100-disk-2,size=4M
ide2: none,media=cdrom
lock: backup
name: web
parent: before
scsi0: local-lvm:vm-100-disk-0,size=32G
scsi10: tank:vm-100-disk-0,backup=0,size=1T
scsi2: nas:100/vm-100-disk-0.qcow2,size=4098K
unused0: local-lvm:vm-100-disk-9

[PENDING]
memory: 4096

[before]
name: web
"""
STORED = b"""\
#prod%3A web
bios: ovmf
efidisk0: local-lvm:vm-100-disk-2,size=4M
ide2: none,media=cdrom
name: web
scsi0: local-lvm:vm-100-disk-0,size=32G
scsi10: tank:vm-100-disk-0,backup=0,size=1T
scsi2: nas:100/vm-100-disk-0.qcow2,size=4098K

#qmdump#map:efidisk0:drive-efidisk0:local-lvm:raw:
#qmdump#map:scsi0:drive-scsi0:local-lvm:raw:
#qmdump#map:scsi2:drive-scsi2:nas:qcow2:
"""


def _entry(key: str, storage_id: str, format_: str = "raw") -> MapEntry:
    return MapEntry(key=key, device_id=f"drive-{key}", storage_id=storage_id, format=format_)


def test_reference_configuration_is_assembled_byte_for_byte() -> None:
    entries = [_entry("scsi2", "nas", "qcow2"), _entry("efidisk0", "local-lvm")]
    assembled = assemble_config(RAW, [*entries, _entry("scsi0", "local-lvm")])
    assert assembled.data == STORED
    assert assembled.unused_volids == ("local-lvm:vm-100-disk-9",)
    assert assembled.skipped_kinds == ("snapshot", "pending")


def test_map_lines_come_in_the_order_of_strings() -> None:
    keys = ["scsi0", "scsi1", "scsi10", "scsi2", "efidisk0", "tpmstate0"]
    lines = assemble_config(b"", [_entry(key, "s") for key in keys]).data.splitlines()
    found = [line.split(b":")[1].decode() for line in lines]
    assert found == ["efidisk0", "scsi0", "scsi1", "scsi10", "scsi2", "tpmstate0"]


def test_marks_of_an_earlier_backup_are_dropped() -> None:
    raw = b"#vzdump#x\n#qmdump#map:a:b:c:d:\nname: x\n"
    assert assemble_config(raw, []).data == b"name: x\n"


def test_snapshot_named_like_pending_counts_as_snapshot() -> None:
    assert assemble_config(b"[pending1]\n", []).skipped_kinds == ("snapshot",)


def test_special_section_is_told_as_special() -> None:
    raw = b"name: x\n[special:cloudinit]\nname: y\n"
    assembled = assemble_config(raw, [])
    assert (assembled.data, assembled.skipped_kinds) == (b"name: x\n", ("special",))


def test_bytes_that_are_no_text_stay_as_they_are() -> None:
    assert assemble_config(b"#\xff\xfe\r\nname: x", []).data == b"#\xff\xfe\r\nname: x\n"


def test_path_disk_has_an_empty_storage_in_its_map_line() -> None:
    assert assemble_config(b"", [_entry("scsi0", "")]).data.endswith(b":drive-scsi0::raw:\n")
