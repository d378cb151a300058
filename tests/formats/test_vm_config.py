"""The VM configuration: lines, sections, drives, warnings and edits that keep every other byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.formats.vm_config import (
    AgentSettings,
    DriveConfig,
    VmConfig,
    decode_description,
    encode_description,
    parse_vm_config,
    remove_lock_line,
    set_fleecing_images,
    set_lock_line,
)

PIECES = st.lists(
    st.sampled_from(
        [
            b"lock: backup", b"lock:", b"#text", b"", b"[snap1]", b"[PENDING]", b" ",
            b"[special:fleecing]", b"fleecing-images: a:b,c:d", b"name: web", b"scsi0: a:b,size=1G",
            b"agent: 1", b"[special:x]", b"delete: a", b"\r", b"template: 1",
            b"\xa0", b"virtio0: none",
        ]
    )
    | st.binary(max_size=12),
    max_size=12,
).map(b"\n".join)  # fmt: skip


def _parse(text: str) -> VmConfig:
    return parse_vm_config(text.encode(), vmid=100)


def _drive(line: str) -> DriveConfig:
    config = _parse(line)
    assert config.warnings == ()
    (drive,) = config.drives
    return drive


def _only_warning(text: str) -> str:
    (warning,) = _parse(text).warnings
    return warning


def test_parse_main_options_are_read() -> None:
    config = _parse("bios: ovmf\nlock: backup\nname:  web-1.example \r\ntemplate: 1\n")
    assert (config.vmid, config.name, config.bios, config.lock) == (
        100, "web-1.example", "ovmf", "backup",
    )  # fmt: skip
    assert config.template
    assert config.options["name"] == "web-1.example"
    assert config.warnings == ()


def test_parse_empty_file_gives_defaults() -> None:
    config = _parse("")
    assert (config.name, config.lock, config.bios, config.template) == ("", "", "seabios", False)
    assert (config.drives, config.unused, config.description) == ((), (), "")
    assert config.agent == AgentSettings(enabled=False, freeze_fs=True, type="virtio")


def test_parse_unknown_key_is_dropped_with_warning() -> None:
    config = _parse("foo: bar\n")
    assert config.warnings == ("vm 100 - unable to parse value of 'foo' - unknown setting 'foo'",)
    assert "foo" not in config.options


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("onboot: maybe", "type check ('boolean') failed - got 'maybe'"),
        ("cores: x", "type check ('integer') failed - got 'x'"),
        ("name: a_b", "invalid format - value does not look like a valid DNS name"),
        ("agent: 1,x=1", "invalid key in comma-separated list property: x"),
        ("scsi31: a:b", "unknown setting 'scsi31'"),
        ("scsi00: a:b", "unknown setting 'scsi00'"),
    ],
)
def test_parse_invalid_value_is_dropped_with_warning(line: str, reason: str) -> None:
    key = line.split(":")[0]
    assert _only_warning(line) == f"vm 100 - unable to parse value of '{key}' - {reason}"
    assert key not in _parse(line).options


@pytest.mark.parametrize("line", ["garbage", " name: a", "Name: a", "name:", "9x: 1"])
def test_parse_other_line_is_warned_about(line: str) -> None:
    assert _only_warning(line) == f"vm 100 - unable to parse config: {line}"


def test_parse_unknown_section_is_skipped_with_warning() -> None:
    config = _parse("name: a\n[1bad]\nname: b\n#c\n[x]\nname: d\n")
    assert config.warnings == (
        "vm 100 - skipping unknown section: '1bad'",
        "vm 100 - skipping unknown section: 'x'",
    )
    assert (config.name, config.description, config.snapshots) == ("a", "", {})


def test_parse_sections_are_kept_apart() -> None:
    config = _parse(
        "name: main\n\n[pending]\nname: next\ndelete: a,!b\n\n[Special:CloudInit]\nanything: ok\n"
        "\n[special:fleecing]\nfleecing-images: a:b,c:d\n\n[before-1] \nname: old\nsnaptime: 1\n"
    )
    assert config.warnings == ()
    assert config.name == "main"
    assert config.pending == {"name": "next", "delete": "a,!b"}
    assert config.special["cloudinit"] == {"anything": "ok"}
    assert config.fleecing_images == ("a:b", "c:d")
    assert config.snapshots == {"before-1": {"name": "old", "snaptime": "1"}}


@pytest.mark.parametrize(
    ("title", "text"),
    [
        ("[PENDING]", "duplicate section: PENDING"),
        ("[special:cloudinit]", "duplicate special section: cloudinit"),
        ("[snap]", "duplicate snapshot section: snap"),
    ],
)
def test_parse_duplicate_section_replaces_the_earlier_with_warning(title: str, text: str) -> None:
    config = _parse(f"{title}\nname: a\n{title}\ncores: 2\n")
    assert config.warnings == (f"vm 100 - {text}",)
    (section,) = (config.pending or config.special.get("cloudinit") or config.snapshots["snap"],)
    assert section == {"cores": "2"}


def test_parse_delete_outside_pending_is_warned_about() -> None:
    assert _only_warning("delete: a") == "vm 100 - property 'delete' is only allowed in [PENDING]"


def test_parse_description_lines_are_joined_and_decoded() -> None:
    config = _parse(
        "#first%3A line\nname: a\n#\n#w%C3%B6rld\ndescription: old%0Atext\n[snap]\n#x\n"
    )
    assert config.description == "first: line\n\nwörld\nold\ntext"
    assert config.snapshots["snap"] == {"description": "x"}


def test_parse_cdrom_key_means_ide2() -> None:
    assert _drive("cdrom: none,media=cdrom").key == "ide2"


def test_parse_bytes_that_are_no_utf8_are_kept_as_escapes() -> None:
    config = parse_vm_config(b"args: -x \xff\n", vmid=100)
    assert config.options["args"] == "-x \\xff"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1", AgentSettings(enabled=True)),
        ("enabled=1,type=isa", AgentSettings(enabled=True, type="isa")),
        ("1,freeze-fs=0", AgentSettings(enabled=True, freeze_fs=False)),
        ("1,freeze-fs-on-backup=0", AgentSettings(enabled=True, freeze_fs=False)),
        ("1,guest-fsfreeze=off", AgentSettings(enabled=True, freeze_fs=False)),
        ("0,freeze-fs=0,type=isa", AgentSettings()),
        ("fstrim_cloned_disks=1", AgentSettings()),
    ],
)
def test_parse_agent_settings(value: str, expected: AgentSettings) -> None:
    assert _parse(f"agent: {value}").agent == expected


def test_parse_drives_come_in_the_fixed_order() -> None:
    keys = ["tpmstate0", "efidisk0", "sata5", "virtio15", "scsi10", "scsi2", "ide3", "ide0"]
    config = _parse("\n".join(f"{key}: s:{key}" for key in keys))
    assert [drive.key for drive in config.drives] == [
        "ide0", "ide3", "scsi2", "scsi10", "virtio15", "sata5", "efidisk0", "tpmstate0",
    ]  # fmt: skip


def test_parse_drive_properties_are_read() -> None:
    drive = _drive("scsi0: file=lvm:vm-100-disk-0,backup=no,iothread=1,size=528K,format=raw,cyls=3")
    assert drive == DriveConfig(
        key="scsi0",
        volid="lvm:vm-100-disk-0",
        media="disk",
        backup=False,
        backup_given=True,
        size_text="528K",
        size_bytes=540672,
        format="raw",
        iothread=True,
        options={"backup": "no", "iothread": "1", "size": "528K", "format": "raw"},
        is_cloud_init=False,
    )


def test_parse_drive_without_properties_is_backed_up() -> None:
    drive = _drive("virtio0: /dev/sdb")
    assert (drive.volid, drive.backup, drive.backup_given) == ("/dev/sdb", True, False)
    assert (drive.size_text, drive.size_bytes, drive.media) == ("", None, "disk")


@pytest.mark.parametrize(
    ("line", "volid"),
    [
        ("ide0: vm-100-disk-1.qcow2", "local:100/vm-100-disk-1.qcow2"),
        ("ide0: debian.iso,media=cdrom", "local:iso/debian.iso"),
        ("ide0: none,media=cdrom", "none"),
        ("ide0: cdrom,media=cdrom", "cdrom"),
        ("ide0: volume=a:b", "a:b"),
    ],
)
def test_parse_drive_file_is_resolved(line: str, volid: str) -> None:
    assert _drive(line).volid == volid


@pytest.mark.parametrize(
    ("file", "is_cloud_init"),
    [
        ("lvm:vm-100-cloudinit", True),
        ("local:100/vm-100-cloudinit.qcow2", True),
        ("local:100/cloudinit.raw", True),
        ("local:iso/vm-100-cloudinit.iso", False),
        ("lvm:vm-100-disk-0", False),
    ],
)
def test_parse_cloud_init_drive_is_known_by_its_file(file: str, is_cloud_init: bool) -> None:
    assert _drive(f"ide2: {file},media=cdrom").is_cloud_init is is_cloud_init


@pytest.mark.parametrize(
    "line",
    [
        "scsi0: size=1G",
        "scsi0: none",
        "scsi0: cdrom",
        "scsi0: a/b",
        "scsi0: a:b,size=big",
        "scsi0: a:b,backup=maybe",
        "scsi0: a:b,media=tape",
        "scsi0: a:b,media=cdrom,format=raw",
        "scsi0: a:b,media=cdrom,snapshot=1",
        "scsi0: a:b,mbps=1,mbps_rd=1",
        "scsi0: a:b,iops=1,iops_wr=1",
        "virtio0: a:b,media=cdrom",
        "ide0: a:b,iothread=1",
        "efidisk0: a:b,backup=0",
        "tpmstate0: a:b,backup=0",
    ],
)
def test_parse_unusable_drive_is_absent_with_warning(line: str) -> None:
    config = _parse(line)
    assert config.drives == ()
    assert line.split(":")[0] not in config.options
    assert config.warnings[0].startswith("vm 100 - unable to parse value of '")


def test_parse_unused_volumes_come_by_number_and_are_no_drives() -> None:
    config = _parse("unused10: a:x\nunused2: a:y\n")
    assert config.unused == (("unused2", "a:y"), ("unused10", "a:x"))
    assert config.drives == ()


def test_encode_description_escapes_all_but_plain_ascii() -> None:
    assert encode_description("50%: wörld\nsecond") == "#50%25%3A w%C3%B6rld\n#second\n"
    assert encode_description("") == ""


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\n")))
def test_description_line_survives_encoding(text: str) -> None:
    encoded = encode_description(text)
    if text:
        assert decode_description(encoded[1:-1]) == text


def test_set_lock_line_stands_before_the_first_option() -> None:
    raw = b"#note\nname: a\n\n[snap]\nlock: x\n"
    assert set_lock_line(raw, "backup") == b"#note\nlock: backup\nname: a\n\n[snap]\nlock: x\n"


def test_set_lock_line_replaces_an_earlier_lock() -> None:
    assert set_lock_line(b"lock: migrate\nname: a\n", "backup") == b"lock: backup\nname: a\n"


def test_set_lock_line_refuses_a_value_that_is_no_lock_name() -> None:
    with pytest.raises(ConfigError):
        set_lock_line(b"", "backup\nname: x")


def test_remove_lock_line_leaves_other_sections_alone() -> None:
    raw = b"name: a\nlock: backup\n[snap]\nlock: x\n"
    assert remove_lock_line(raw) == b"name: a\n[snap]\nlock: x\n"


@given(PIECES)
def test_lock_line_can_be_set_and_removed_without_a_trace(raw: bytes) -> None:
    locked = set_lock_line(raw, "backup")
    assert parse_vm_config(locked, vmid=100).lock == "backup"
    unlocked = remove_lock_line(locked)
    assert parse_vm_config(unlocked, vmid=100).lock == ""
    if not parse_vm_config(raw, vmid=100).lock:
        assert unlocked == raw


def test_set_fleecing_images_adds_the_section_at_the_end() -> None:
    assert set_fleecing_images(b"name: a\n\n[snap]\ncores: 1\n", ["s:x", "s:y"]) == (
        b"name: a\n\n[snap]\ncores: 1\n\n[special:fleecing]\nfleecing-images: s:x,s:y\n"
    )


def test_set_fleecing_images_replaces_the_list_in_its_place() -> None:
    raw = b"name: a\n\n[special:fleecing]\nfleecing-images: s:x\n\n[snap]\ncores: 1\n"
    assert set_fleecing_images(raw, ["s:y"]) == raw.replace(b"s:x", b"s:y")


def test_set_fleecing_images_without_images_removes_the_section() -> None:
    raw = b"name: a\n\n[special:fleecing]\nfleecing-images: s:x\n\n[snap]\ncores: 1\n"
    assert set_fleecing_images(raw, ()) == b"name: a\n\n[snap]\ncores: 1\n"


def test_set_fleecing_images_refuses_what_cannot_stand_in_a_list() -> None:
    with pytest.raises(ConfigError):
        set_fleecing_images(b"", ["a,b"])


@given(PIECES)
def test_fleecing_images_are_read_back_and_go_without_a_trace(raw: bytes) -> None:
    recorded = set_fleecing_images(raw, ["s:x", "s:y"])
    assert parse_vm_config(recorded, vmid=100).fleecing_images == ("s:x", "s:y")
    cleared = set_fleecing_images(recorded, ())
    assert parse_vm_config(cleared, vmid=100).fleecing_images == ()
    if b"fleecing]" not in raw and raw.endswith(b"\n"):
        assert cleared == raw


@given(PIECES | st.binary())
def test_parse_any_bytes_never_raises(raw: bytes) -> None:
    config = parse_vm_config(raw, vmid=100)
    assert all(warning.startswith("vm 100 - ") for warning in config.warnings)


def test_parse_property_of_a_later_platform_keeps_the_disk() -> None:
    config = parse_vm_config(b"scsi0: a:b,foo=1,size=1G\n", vmid=100)
    assert [drive.volid for drive in config.drives] == ["a:b"]
    assert config.drives[0].size_text == "1G"


def test_parse_fraction_of_a_second_for_a_migration_is_no_warning() -> None:
    assert parse_vm_config(b"migrate_downtime: 0.1\n", vmid=100).warnings == ()


def test_parse_of_a_text_that_was_read_before_gives_what_nobody_can_have_changed() -> None:
    raw = b"scsi0: a:b,size=1G\n[PENDING]\ncores: 2\n[snap1]\ncores: 1\n"
    config = parse_vm_config(raw, vmid=100)
    mappings = (config.options, config.pending, config.snapshots, config.special)
    for mapping in (*mappings, config.snapshots["snap1"], config.drives[0].options):
        with pytest.raises(TypeError):
            mapping["name"] = "web"  # type: ignore[index]
    assert parse_vm_config(raw, vmid=100) == config
    assert parse_vm_config(raw, vmid=101).vmid == 101
