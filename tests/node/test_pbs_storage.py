"""Backup servers of ``storage.cfg``: what becomes of a section and the secrets beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vzdump_qemu.errors import StorageError
from vzdump_qemu.formats.storage_config import parse_storage_config
from vzdump_qemu.node.pbs_storage import read_pbs_target
from vzdump_qemu.node.storage_sections import StorageSections
from vzdump_qemu.pbs_target import PbsTarget

PIN = ":".join(["ab"] * 32)


def read(directory: Path, *lines: str, password: bytes | None = b"secret\n") -> PbsTarget:
    text = "pbs: bak\n" + "".join(f"\t{line}\n" for line in lines)
    [section] = (
        section
        for section in parse_storage_config(text.encode()).sections.values()
        if section.storage_id == "bak"
    )
    if password is not None:
        (directory / "bak.pw").write_bytes(password)
    return read_pbs_target(section, str(directory))


@pytest.mark.parametrize(
    ("lines", "repository"),
    [
        (["server pbs.example"], "root@pam@pbs.example:store"),
        (["server pbs.example", "port 8007"], "root@pam@pbs.example:store"),
        (["server pbs.example", "port 8008"], "root@pam@pbs.example:8008:store"),
        (["server 2001:db8::1"], "root@pam@[2001:db8::1]:store"),
        (["server 2001:db8::1", "port 8008"], "root@pam@[2001:db8::1]:8008:store"),
        (["server 192.0.2.7"], "root@pam@192.0.2.7:store"),
        (["server pbs.example", "username backup@pbs!tok"], "backup@pbs!tok@pbs.example:store"),
        (["server pbs.example", "username me@corp@ad"], "me@corp@ad@pbs.example:store"),
        (["server pbs.example", "namespace a/b"], "root@pam@pbs.example:store"),
        (["server pbs.example", f"fingerprint {PIN}"], "root@pam@pbs.example:store"),
    ],
)
def test_row_10_1_7_and_5_8_section_becomes_the_platforms_repository_string(
    lines: list[str], repository: str, tmp_path: Path
) -> None:
    target = read(tmp_path, "datastore store", *lines)
    assert target.repository.render() == repository
    assert target.storage_id == "bak"


def test_row_5_8_namespace_and_fingerprint_are_beside_the_repository(tmp_path: Path) -> None:
    target = read(
        tmp_path,
        "server pbs.example",
        "datastore store",
        "namespace a/b",
        f"fingerprint {PIN.upper()}",
    )
    assert str(target.namespace) == "a/b"
    assert str(target.fingerprint) == PIN
    plain = read(tmp_path, "server pbs.example", "datastore store")
    assert plain.namespace.is_root
    assert plain.fingerprint is None


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["datastore store"], "no server given"),
        (["server pbs.example"], "no datastore given"),
    ],
)
def test_row_5_8_missing_place_is_told_in_the_platforms_words(
    lines: list[str], text: str, tmp_path: Path
) -> None:
    section = parse_storage_config(b"pbs: bak\n\tserver pbs.example\n\tdatastore store\n").sections[
        "bak"
    ]
    kept = {line.split()[0] for line in lines}
    for name in ("server", "datastore"):
        if name not in kept:
            del section.options[name]  # type: ignore[attr-defined]
    with pytest.raises(StorageError) as caught:
        read_pbs_target(section, str(tmp_path))
    assert caught.value.message == text


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("server -x-", "storage 'bak': not a host name or address: '-x-'"),
        ("username nobody", "storage 'bak': not a user or API token: 'nobody'"),
        ("namespace a//b", "storage 'bak': not a namespace: 'a//b'"),
        ("fingerprint 12:34", "storage 'bak': not a fingerprint: '12:34'"),
    ],
)
def test_value_that_cannot_be_names_the_storage(line: str, text: str, tmp_path: Path) -> None:
    lines = {"server": "server pbs.example", "datastore": "datastore store"}
    lines[line.split()[0]] = line
    with pytest.raises(StorageError) as caught:
        read(tmp_path, *lines.values())
    assert caught.value.message == text


KEYLESS = (
    "backup target storage is configured with master-key, but no encryption key set! "
    "Ignoring master key settings and creating unencrypted backup."
)


@pytest.mark.parametrize(
    ("files", "lines", "chosen", "warning"),
    [
        ((), (), ("", ""), ""),
        (("enc",), ("encryption-key 1",), ("bak.enc", ""), ""),
        (("enc",), (), ("bak.enc", ""), ""),
        (
            ("enc", "master.pem"),
            ("encryption-key 1", "master-pubkey 1"),
            ("bak.enc", "bak.master.pem"),
            "",
        ),
        (("master.pem",), (), ("", ""), KEYLESS),
    ],
)
def test_row_5_8_keys_are_chosen_by_what_is_there(
    files: tuple[str, ...],
    lines: tuple[str, ...],
    chosen: tuple[str, str],
    warning: str,
    tmp_path: Path,
) -> None:
    for name in files:
        (tmp_path / f"bak.{name}").write_text("x")
    target = read(tmp_path, "server pbs.example", "datastore store", *lines)
    paths = (target.key_path, target.master_key_path)
    assert paths == tuple(str(tmp_path / name) if name else "" for name in chosen)
    assert target.warning == warning


@pytest.mark.parametrize(
    ("files", "lines", "text"),
    [
        (
            (),
            ("encryption-key ab:cd",),
            "encryption configured ('ab:cd') but no encryption key file found!",
        ),
        (
            ("master.pem",),
            ("encryption-key 1", "master-pubkey 1"),
            "encryption configured ('1') but no encryption key file found!",
        ),
        (
            ("enc",),
            ("encryption-key 1", "master-pubkey 1"),
            "master public key configured but no key file found",
        ),
    ],
)
def test_configured_key_that_is_missing_is_refused(
    files: tuple[str, ...], lines: tuple[str, ...], text: str, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / f"bak.{name}").write_text("x")
    with pytest.raises(StorageError) as caught:
        read(tmp_path, "server pbs.example", "datastore store", *lines)
    assert caught.value.message == text


@pytest.mark.parametrize("files", [(), ("master.pem",), ("enc",)])
def test_missing_key_hinders_no_look_at_the_backups(files: tuple[str, ...], tmp_path: Path) -> None:
    """Listing and removing need no key; what is encrypted is refused when it is read."""
    config = tmp_path / "storage.cfg"
    config.write_text(
        "pbs: bak\n\tserver pbs.example\n\tdatastore store\n\tencryption-key ab:cd\n"
        "\tmaster-pubkey 1\n"
    )
    (tmp_path / "bak.pw").write_text("secret")
    for name in files:
        (tmp_path / f"bak.{name}").write_text("x")
    sections = StorageSections(path=str(config), secret_directory=str(tmp_path), node_name="lab")
    target = sections.backup_server("bak", for_reading=True)
    assert target is not None
    assert target.key_path == (str(tmp_path / "bak.enc") if files == ("enc",) else "")
    assert (target.master_key_path, target.warning) == ("", "")
    with pytest.raises(StorageError, match=r"no encryption key file found|no key file found"):
        sections.backup_server("bak")


@pytest.mark.parametrize(
    ("raw", "password"),
    [
        (b"secret", "secret"),
        (b"secret\nsecond line\n", "secret"),
        (b"secret\r\n", "secret"),
        ("pässwörd\n".encode(), "pässwörd"),
        (b"p\xe4ss\n", "p\xe4ss"),
        (b" blanks stay \n", " blanks stay "),
    ],
)
def test_row_5_8_password_is_the_first_line_in_either_encoding(
    raw: bytes, password: str, tmp_path: Path
) -> None:
    target = read(tmp_path, "server pbs.example", "datastore store", password=raw)
    assert target.password.reveal() == password
    assert password not in repr(target)


def test_unreadable_password_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        read(tmp_path, "server pbs.example", "datastore store", password=None)
    assert caught.value.message == (
        f"unable to read the password file '{tmp_path}/bak.pw' - No such file or directory"
    )
    (tmp_path / "bak.pw").mkdir()
    with pytest.raises(StorageError, match="Is a directory"):
        read(tmp_path, "server pbs.example", "datastore store", password=None)


def test_storage_of_another_type_is_no_server(tmp_path: Path) -> None:
    config = tmp_path / "storage.cfg"
    config.write_text(
        "dir: files\n\tpath /x\n\npbs: bak\n\tserver pbs.example\n\tdatastore store\n\tdisable\n"
    )
    sections = StorageSections(path=str(config), secret_directory=str(tmp_path), node_name="lab")
    assert sections.backup_server("files") is None
    with pytest.raises(StorageError, match="storage 'bak' is disabled"):
        sections.backup_server("bak")
    with pytest.raises(StorageError, match="storage 'none' does not exist"):
        sections.backup_server("none")
