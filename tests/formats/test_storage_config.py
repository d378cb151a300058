"""The storage configuration: sections, warnings, `local`, availability and volume ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vzdump_qemu.errors import ConfigError, StorageError
from vzdump_qemu.formats.storage_config import (
    STORAGE_TYPES,
    StorageConfig,
    StorageSection,
    parse_storage_config,
    parse_volume_id,
    require_storage,
)

LINES = st.lists(
    st.sampled_from(
        [
            "dir: local", "dir: a1", "\tpath /x", "\tpath", "", " ", "#x", "\tdisable",
            "\tdisable no", "lvm: b1", "\tvgname pve", "\tcontent images,none", "\tnodes a,b",
            "\tshared maybe",
        ]
    )
    | st.text(max_size=12),
    max_size=12,
).map("\n".join)  # fmt: skip


def _parse(text: str) -> StorageConfig:
    return parse_storage_config(text.encode())


def test_parse_section_is_read() -> None:
    config = _parse(
        "dir: local\n\tpath /var/lib/vz\n\tcontent iso\n\n"
        "LVMThin: fast-1\n\tthinpool data  \n\tvgname pve\n\tnodes n1,n2\n\tdisable\n\n"
    )
    assert config.warnings == ()
    assert list(config.sections) == ["local", "fast-1"]
    assert config.sections["fast-1"] == StorageSection(
        type="lvmthin",
        storage_id="fast-1",
        options={"thinpool": "data", "vgname": "pve"},
        content=frozenset(("images", "rootdir")),
        nodes=frozenset(("n1", "n2")),
        disabled=True,
    )


def test_parse_last_section_needs_no_empty_line() -> None:
    assert "a1" in _parse("dir: a1\n\tpath /x").sections


def test_parse_header_without_empty_line_before_is_ignored() -> None:
    config = _parse("dir: a1\n\tpath /x\ndir: a2\n\tnodes n1\n")
    assert "a2" not in config.sections
    assert config.sections["a1"].nodes == {"n1"}
    assert config.warnings == (
        "file storage.cfg line 3 (section 'a1') - ignore config line: dir: a2",
    )


def test_parse_comments_are_skipped_anywhere() -> None:
    config = _parse("# top\ndir: a1\n  # inside\n\tpath /x\n")
    assert config.sections["a1"].options == {"path": "/x"}
    assert config.warnings == ()


@pytest.mark.parametrize("storage_id", ["a", "1a", "a-", "a/b"])
def test_parse_section_with_bad_id_is_skipped_with_warning(storage_id: str) -> None:
    config = _parse(f"dir: {storage_id}\n\tpath /x\n")
    assert list(config.sections) == ["local"]
    assert config.warnings == (
        f"file storage.cfg line 1 (skip section '{storage_id}'): "
        f"storage ID '{storage_id}' contains illegal characters",
    )


def test_parse_section_of_unknown_type_is_skipped_with_warning() -> None:
    config = _parse("glusterfs: a1\n\tfoo bar\n\ndir: a2\n\tpath /x\n")
    assert list(config.sections) == ["a2", "local"]
    assert config.warnings == (
        "file storage.cfg line 1 (skip section 'a1'): unsupported type 'glusterfs'",
    )


def test_parse_unknown_and_invalid_keys_are_ignored_with_warning() -> None:
    config = _parse("dir: a1\n\tpath /x\n\tfoo 1\n\tshared maybe\n\tnodes\n")
    assert config.sections["a1"].options == {"path": "/x"}
    assert config.warnings == (
        "file storage.cfg line 3 (section 'a1') - unable to parse value of 'foo': "
        "unexpected property 'foo'",
        "file storage.cfg line 4 (section 'a1') - unable to parse value of 'shared': "
        "type check ('boolean') failed - got 'maybe'",
        "file storage.cfg line 5 (section 'a1') - unable to parse value of 'nodes': "
        "got undefined value",
    )


def test_parse_duplicate_key_keeps_the_first() -> None:
    config = _parse("dir: a1\n\tpath /x\n\tpath /y\n")
    assert config.sections["a1"].options["path"] == "/x"
    assert config.warnings == (
        "file storage.cfg line 3 (section 'a1') - unable to parse value of 'path': "
        "duplicate attribute",
    )


def test_parse_duplicate_section_keeps_the_first() -> None:
    config = _parse("dir: a1\n\tpath /x\n\ndir: a1\n\tpath /y\n")
    assert config.sections["a1"].options["path"] == "/x"
    assert config.warnings == (
        "file storage.cfg line 4 (skip section 'a1'): duplicate section 'a1'",
    )


@pytest.mark.parametrize(
    ("kind", "key"),
    [(name, key) for name, kind in STORAGE_TYPES.items() for key in kind.required],
)
def test_parse_section_without_required_key_is_skipped(kind: str, key: str) -> None:
    others = "".join(f"\t{name} x\n" for name in STORAGE_TYPES[kind].required if name != key)
    config = _parse(f"{kind}: a1\n{others}")
    assert "a1" not in config.sections
    assert config.warnings == (
        f"file storage.cfg line 1 (skip section 'a1'): missing value for required option '{key}'",
    )


@pytest.mark.parametrize("kind", STORAGE_TYPES)
def test_parse_section_with_required_keys_is_usable(kind: str) -> None:
    required = "".join(f"\t{name} x\n" for name in STORAGE_TYPES[kind].required)
    config = _parse(f"{kind}: a1\n{required}")
    assert config.warnings == ()
    assert config.sections["a1"].content == STORAGE_TYPES[kind].default_contents


def test_parse_unknown_content_is_dropped_with_warning() -> None:
    config = _parse("lvm: a1\n\tvgname pve\n\tcontent images,backup rootdir\n")
    assert config.sections["a1"].content == {"images", "rootdir"}
    assert config.warnings == (
        "file storage.cfg line 3 (section 'a1') - unsupported content type 'backup'",
    )


def test_parse_content_none_stands_only_alone() -> None:
    assert _parse("dir: a1\n\tpath /x\n\tcontent none\n").sections["a1"].content == {"none"}
    config = _parse("dir: a1\n\tpath /x\n\tcontent none,iso\n")
    assert config.sections["a1"].content == {"iso"}
    assert config.warnings == (
        "file storage.cfg line 3 (section 'a1') - "
        "unable to combine 'none' with other content types",
    )


@pytest.mark.parametrize(
    "text",
    ["", "lvm: local\n\tvgname x\n", "dir: local\n\tpath /elsewhere\n\tcontent images\n"],
)
def test_parse_local_is_synthesised_where_it_is_not_the_usual_one(text: str) -> None:
    local = _parse(text).sections["local"]
    assert local.type == "dir"
    assert local.options == {"path": "/var/lib/vz", "prune-backups": "keep-all=1"}
    assert local.content == {"images", "rootdir", "vztmpl", "iso", "backup", "snippets"}


def test_parse_local_ignores_nodes() -> None:
    config = _parse("dir: local\n\tpath /var/lib/vz\n\tcontent backup\n\tnodes other\n")
    assert config.sections["local"].content == {"backup"}
    assert require_storage(config, "local", node="n1").nodes == frozenset()


@pytest.mark.parametrize(
    ("section", "is_shared"),
    [
        ("dir: a1\n\tpath /x\n", False),
        ("dir: a1\n\tpath /x\n\tshared\n", True),
        ("dir: a1\n\tpath /x\n\tshared 0\n", False),
        ("nfs: a1\n\tserver s\n\texport /e\n", True),
    ],
)
def test_section_is_shared_by_type_or_by_option(section: str, is_shared: bool) -> None:
    assert _parse(section).sections["a1"].is_shared is is_shared


def test_require_storage_names_what_is_wrong() -> None:
    config = _parse("dir: off\n\tpath /x\n\tdisable 1\n\ndir: far\n\tpath /y\n\tnodes n2\n")
    for storage_id, text in (
        ("gone", "storage 'gone' does not exist"),
        ("off", "storage 'off' is disabled"),
        ("far", "storage 'far' is not available on node 'n1'"),
    ):
        with pytest.raises(StorageError) as caught:
            require_storage(config, storage_id, node="n1")
        assert caught.value.message == text
    assert require_storage(config, "far", node="n2").storage_id == "far"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("local-lvm:vm-100-disk-0", ("local-lvm", "vm-100-disk-0")),
        ("Pool.1:100/vm-100-disk-0.qcow2", ("Pool.1", "100/vm-100-disk-0.qcow2")),
        ("nbd:host:10809", ("nbd", "host:10809")),
    ],
)
def test_parse_volume_id_splits_at_the_first_colon(text: str, parts: tuple[str, str]) -> None:
    assert parse_volume_id(text) == parts


@pytest.mark.parametrize("text", ["", "abc", "a:", ":b", "a:b", "1a:b", "/dev/sdb", "a-:b"])
def test_parse_volume_id_refuses_other_words(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_volume_id(text)
    assert caught.value.message == f"unable to parse volume ID '{text}'"


def test_section_of_unknown_type_is_kept_for_a_platform_that_knows_it() -> None:
    """Row 5.1 "unknown type": skipped with a warning here, usable through the library there."""
    config = _parse("linstor: a1\n\tfoo bar\n\tcontent backup\n\tnodes n1\n\tdisable 0\n")
    section = require_storage(config, "a1", node="n1")
    assert (section.type, section.content) == ("linstor", {"backup"})
    assert section.options == {"foo": "bar"}
    with pytest.raises(StorageError, match="not available on node 'n2'"):
        require_storage(config, "a1", node="n2")


def test_require_of_a_skipped_section_says_with_its_line_why() -> None:
    config = _parse("# storages\n\ndir: a1\n\tcontent backup\n")
    with pytest.raises(StorageError, match="storage 'a1' does not exist") as caught:
        require_storage(config, "a1", node="n1")
    assert caught.value.hint == (
        "file storage.cfg line 3 (skip section 'a1'): missing value for required option 'path'"
    )


EVERY_OPTION = """\
dir: a1
\tpath /x
\tnodes n1
\tdisable 0
\tcontent backup,images
\tshared 1
\tprune-backups keep-last=3,keep-daily=7
\tmaxfiles 3
\tmax-protected-backups -1
\tcontent-dirs backup=save/here,images=disks
\tformat qcow2
\tpreallocation metadata
\tbwlimit migration=100,restore=200
\tsnapshot-as-volume-chain 1
\tis_mountpoint yes
\tmkdir 0
\tcreate-base-path 0
\tcreate-subdirs 0

nfs: a2
\tpath /mnt/pve/a2
\tserver 192.0.2.1
\texport /data
\toptions vers=4.2,soft

cifs: a3
\tserver fs.example
\tshare backup
\tsubdir /vm
\tusername u
\tdomain d
\tsmbversion 3.1.1

cephfs: a4
\tmonhost 192.0.2.1 192.0.2.2
\tfs-name fs
\tsubdir /x
\tfuse 1
\tkeyring /k

rbd: a5
\tpool p
\tnamespace n
\tdata-pool d
\tkrbd 1
\tusername admin
\tmonhost 192.0.2.1

zfspool: a6
\tpool tank/vm
\tblocksize 16k
\tsparse 1
\tmountpoint /tank/vm

lvm: a7
\tvgname vg
\tbase a9:0.0.0.x
\tsaferemove 1
\tsaferemove_throughput 10
\ttagged_only 0

pbs: a8
\tserver pbs.example
\tdatastore store
\tport 8008
\tnamespace a/b
\tfingerprint ab:cd
\tencryption-key 1
\tmaster-pubkey 1

iscsi: a9
\tportal 192.0.2.1
\ttarget iqn.2001-04.example:x
"""


def test_every_option_of_every_type_is_taken_without_a_warning() -> None:
    config = _parse(EVERY_OPTION)
    assert config.warnings == ()
    assert config.foreign == {}
    section = config.sections["a1"]
    assert section.is_shared
    assert section.has("is_mountpoint")
    assert not section.has("mkdir", default=True)
    assert section.has("fuse", default=True)
    assert section.options["prune-backups"] == "keep-last=3,keep-daily=7"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("maxfiles x", "type check ('integer') failed - got 'x'"),
        ("maxfiles -1", "value must have a minimum value of 0"),
        ("max-protected-backups -2", "value must have a minimum value of -1"),
        ("port 70000", "value must have a maximum value of 65535"),
        (
            "preallocation some",
            "value 'some' does not have a value in the enumeration 'falloc, full, metadata, off'",
        ),
        ("content-dirs backup", "invalid format - invalid override 'backup'"),
        ("content-dirs nonsense=x", "invalid format - invalid override 'nonsense=x'"),
    ],
)
def test_value_that_cannot_be_is_ignored_with_a_warning(line: str, text: str) -> None:
    config = _parse(f"dir: a1\n\tpath /x\n\t{line}\n")
    assert config.sections["a1"].options == {"path": "/x"}
    key = line.split()[0]
    assert config.warnings == (
        f"file storage.cfg line 3 (section 'a1') - unable to parse value of '{key}': {text}",
    )


@given(LINES.map(str.encode) | st.binary())
def test_parse_any_bytes_never_raises_and_local_is_always_there(raw: bytes) -> None:
    config = parse_storage_config(raw)
    assert config.sections["local"].options["path"].rstrip("/") == "/var/lib/vz"
    assert all(section.storage_id == key for key, section in config.sections.items())
