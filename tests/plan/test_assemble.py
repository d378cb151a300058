"""The stored configuration: reference vector and edge rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_row_10_2_reference_configuration_is_assembled_byte_for_byte() -> None:
    entries = [_entry("scsi2", "nas", "qcow2"), _entry("efidisk0", "local-lvm")]
    assembled = assemble_config(RAW, [*entries, _entry("scsi0", "local-lvm")])
    assert assembled.data == STORED
    assert assembled.unused_volids == ("local-lvm:vm-100-disk-9",)
    assert assembled.skipped_kinds == ("snapshot", "pending")


def test_row_10_1_4_map_lines_come_in_the_order_of_strings() -> None:
    keys = ["scsi0", "scsi1", "scsi10", "scsi2", "efidisk0", "tpmstate0"]
    lines = assemble_config(b"", [_entry(key, "s") for key in keys]).data.splitlines()
    found = [line.split(b":")[1].decode() for line in lines]
    assert found == ["efidisk0", "scsi0", "scsi1", "scsi10", "scsi2", "tpmstate0"]


def test_row_10_1_4_marks_of_an_earlier_backup_are_dropped() -> None:
    raw = b"#vzdump#x\n#qmdump#map:a:b:c:d:\nname: x\n"
    assert assemble_config(raw, []).data == b"name: x\n"


def test_row_10_1_4_snapshot_named_like_pending_counts_as_snapshot() -> None:
    assert assemble_config(b"[pending1]\n", []).skipped_kinds == ("snapshot",)


def test_row_10_1_4_special_section_is_told_as_special() -> None:
    raw = b"name: x\n[special:cloudinit]\nname: y\n"
    assembled = assemble_config(raw, [])
    assert (assembled.data, assembled.skipped_kinds) == (b"name: x\n", ("special",))


def test_bytes_that_are_no_text_stay_as_they_are() -> None:
    assert assemble_config(b"#\xff\xfe\r\nname: x", []).data == b"#\xff\xfe\r\nname: x\n"


def test_path_disk_has_an_empty_storage_in_its_map_line() -> None:
    assert assemble_config(b"", [_entry("scsi0", "")]).data.endswith(b":drive-scsi0::raw:\n")


@pytest.mark.parametrize(
    "raw",
    [b"#a\r[PENDING]\nscsi0: a:b\n", b"args: a\rlock: b\n", b"#x\rparent: y\n", b"#\r#qmdump#\n"],
)
def test_lone_carriage_return_does_not_end_a_line(raw: bytes) -> None:
    assembled = assemble_config(raw, [])
    assert (assembled.data, assembled.skipped_kinds) == (raw, ())


def test_empty_configuration_holds_only_the_map_lines() -> None:
    assert assemble_config(b"", []).data == b""
    assert assemble_config(b"", [_entry("scsi0", "s")]).data == _entry("scsi0", "s").line()


def test_row_10_1_4_every_unused_disk_is_told_in_the_order_of_the_file() -> None:
    assembled = assemble_config(b"unused1: a:y\nunused0:a:x\nunusedfoo: z\n", [])
    assert assembled.unused_volids == ("a:y", "a:x")
    assert assembled.data == b"unusedfoo: z\n"


def test_lock_and_unused_of_a_dropped_section_are_not_told() -> None:
    assembled = assemble_config(b"name: x\n[before]\nlock: backup\nunused0: a:b\n", [])
    assert (assembled.data, assembled.unused_volids) == (b"name: x\n", ())


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        (b"[PENDING]", "pending"),
        (b"[pending] \t", "pending"),
        (b"[special:cloudinit]", "special"),
        (b"[special:fleecing]\r", "special"),
        (b"[mypending]", "snapshot"),
        (b"[1bad]", "snapshot"),
    ],
)
def test_section_header_tells_its_kind(header: bytes, kind: str) -> None:
    assert assemble_config(b"a: b\n" + header + b"\nc: d\n", []).skipped_kinds == (kind,)


def test_skipped_kinds_come_in_a_fixed_order_and_once() -> None:
    raw = b"[a1]\n[PENDING]\n[special:cloudinit]\n[b1]\n[special:fleecing]\n"
    assert assemble_config(raw, []).skipped_kinds == ("special", "snapshot", "pending")


PIECES = st.sampled_from(
    [
        b"scsi0: a:b", b"lock: backup", b"parent: x", b"unused0: a:b", b"[s1]", b"#t", b"#qmdump#x",
        b"\r", b"\n", b"\n", b"\n",
    ]
) | st.binary(max_size=3)  # fmt: skip


@given(st.lists(PIECES, max_size=20).map(b"".join))
def test_kept_lines_are_those_of_the_main_section_in_their_order(raw: bytes) -> None:
    assembled = assemble_config(raw, [])
    rest = iter(raw.split(b"\n"))
    # Each kept line is found further on in the input: nothing is changed, doubled or moved.
    assert all(line in rest for line in assembled.data.split(b"\n")[:-1])
    assert not any(line.startswith((b"lock:", b"#qmdump#")) for line in assembled.data.split(b"\n"))
    assert assemble_config(assembled.data, []).data == assembled.data
