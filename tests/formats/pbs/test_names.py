"""Names, namespaces and paths of backups."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vzdump_qemu.errors import PbsError
from vzdump_qemu.formats.pbs.names import (
    BackupGroup,
    BackupRef,
    BackupType,
    FileKind,
    Namespace,
    check_datastore,
    disk_index_name,
    disk_of_index,
    file_kind,
    is_safe_id,
)

SAFE_IDS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,30}", fullmatch=True)


@given(st.sampled_from(BackupType), SAFE_IDS, st.integers(1, 253402300799))
def test_backup_ref_path_returns(backup_type: BackupType, backup_id: str, time_s: int) -> None:
    group = BackupGroup(backup_type=backup_type, backup_id=backup_id)
    ref = BackupRef(backup_group=group, backup_time_s=time_s)
    assert BackupRef.parse(ref.path) == ref
    assert BackupGroup.parse(group.path) == group


def test_backup_ref_has_the_path_of_the_datastore() -> None:
    ref = BackupRef.parse("vm/100/2023-11-14T22:13:20Z")
    assert ref.backup_time_s == 1700000000
    assert ref.backup_group == BackupGroup(backup_type=BackupType.VM, backup_id="100")
    assert ref.directory(Namespace()) == "vm/100/2023-11-14T22:13:20Z"
    assert ref.directory(Namespace.parse("a/b")) == "ns/a/ns/b/vm/100/2023-11-14T22:13:20Z"


@pytest.mark.parametrize(
    "text",
    ["", "vm/100", "vm/100/", "qemu/100/2023-11-14T22:13:20Z", "vm/../2023-11-14T22:13:20Z",
     "vm//2023-11-14T22:13:20Z", "a/vm/100/2023-11-14T22:13:20Z", "vm/100/1970-01-01T00:00:00Z",
     "vm/.x/2023-11-14T22:13:20Z", "vm/1 0/2023-11-14T22:13:20Z"],
)  # fmt: skip
def test_backup_ref_other_text_is_refused(text: str) -> None:
    with pytest.raises(PbsError):
        BackupRef.parse(text)


@given(st.lists(SAFE_IDS, max_size=7))
def test_namespace_text_returns(parts: list[str]) -> None:
    namespace = Namespace(parts=tuple(parts))
    assert Namespace.parse(str(namespace)) == namespace


def test_namespace_root_is_empty() -> None:
    assert Namespace.parse("") == Namespace()
    assert Namespace().is_root
    assert (str(Namespace()), Namespace().directory) == ("", "")


@pytest.mark.parametrize(
    "text", ["/", "a/", "/a", "a//b", ".", "a/..", "a b", "/".join("abcdefgh"), "a" * 257, "a\n"]
)
def test_namespace_other_text_is_refused(text: str) -> None:
    with pytest.raises(PbsError):
        Namespace.parse(text)


def test_namespace_seven_parts_is_the_deepest() -> None:
    assert len(Namespace.parse("/".join("abcdefg")).parts) == 7


@pytest.mark.parametrize("name", ["ab", "a" * 33, ".ab", "a/b", "a:b", "", "abc\n"])
def test_datastore_name_out_of_rule_is_refused(name: str) -> None:
    with pytest.raises(PbsError):
        check_datastore(name)


def test_datastore_name_in_rule_is_returned() -> None:
    assert check_datastore("tank") == "tank"


def test_file_kind_known_suffixes_are_told() -> None:
    assert file_kind("drive-scsi0.img.fidx") is FileKind.FIXED_INDEX
    assert file_kind("root.pxar.didx") is FileKind.DYNAMIC_INDEX
    assert file_kind("index.json.blob") is FileKind.DATA_BLOB


@pytest.mark.parametrize("name", ["", ".fidx", "x.img", "../x.blob", "x.FIDX", "x" * 255 + ".blob"])
def test_file_kind_other_names_are_refused(name: str) -> None:
    with pytest.raises(PbsError):
        file_kind(name)


def test_disk_index_name_returns_to_the_disk() -> None:
    assert disk_index_name("drive-scsi0") == "drive-scsi0.img.fidx"
    assert disk_of_index("drive-scsi0.img.fidx") == "drive-scsi0"
    assert disk_of_index("qemu-server.conf.blob") is None
    assert disk_of_index(".img.fidx") is None


@pytest.mark.parametrize("device_id", ["", "#block123", "a/b", "d" * 250])
def test_disk_index_name_unsafe_disk_is_refused(device_id: str) -> None:
    with pytest.raises(PbsError):
        disk_index_name(device_id)


@given(st.text(max_size=20))
def test_safe_id_never_holds_what_leaves_a_directory(text: str) -> None:
    if is_safe_id(text):
        assert text.isascii() and text not in ("", ".", "..") and "/" not in text
