"""Key files with and without passphrase; the scrypt of the tests is a cheap one."""

from __future__ import annotations

from pathlib import Path

import pytest

from vzdump_qemu.errors import PbsKeyError
from vzdump_qemu.formats.pbs import (
    CryptMode,
    EncryptionKey,
    ScryptKdf,
    bare_key_file,
    encode_key_file,
    protect_key_file,
)
from vzdump_qemu.stores.pbs import BackupKey, Secret, load_backup_key

KEY = EncryptionKey(bytes(range(32)))


@pytest.fixture
def protected(tmp_path: Path) -> str:
    bare = bare_key_file(KEY, created_s=1700000000, modified_s=1700000000)
    kdf = ScryptKdf(salt=bytes(32), n=16)
    path = tmp_path / "protected"
    path.write_bytes(encode_key_file(protect_key_file(bare, b"12345", kdf, iv=bytes(16))))
    return str(path)


def test_passphrase_unlocks_the_key(protected: str) -> None:
    found = load_backup_key(protected, passphrase=Secret("12345"), mode=CryptMode.SIGN_ONLY)
    assert found.key == KEY
    assert found.created_s == 1700000000
    assert found.data_key is None


@pytest.mark.parametrize("passphrase", [None, Secret("54321"), Secret("1")])
def test_missing_or_wrong_passphrase_is_refused(protected: str, passphrase: Secret | None) -> None:
    with pytest.raises(PbsKeyError) as caught:
        load_backup_key(protected, passphrase=passphrase)
    assert "\n" not in str(caught.value)
    assert "54321" not in str(caught.value)


def test_file_that_is_no_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    for content in (b"", b"{}", b"x" * 100_000):
        path.write_bytes(content)
        with pytest.raises(PbsKeyError):
            load_backup_key(str(path))


def test_key_that_does_nothing_is_refused() -> None:
    with pytest.raises(PbsKeyError):
        BackupKey(key=KEY, mode=CryptMode.NONE)
    assert "1d1e1f" not in repr(BackupKey(key=KEY))
