"""Where secrets are read from, in which order, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from vzdump_qemu.errors import PbsError
from vzdump_qemu.stores.pbs import Secret, find_passphrase, find_secret, read_secret_file


def test_variable_is_taken_before_file_and_credential(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from file\nsecond line\n")
    (tmp_path / "pbs-password").write_text("from credential\r\n")
    environment = {
        "PBS_PASSWORD": "from variable",
        "PBS_PASSWORD_FILE": str(tmp_path / "file"),
        "CREDENTIALS_DIRECTORY": str(tmp_path),
    }
    found = []
    for name in (None, "PBS_PASSWORD", "PBS_PASSWORD_FILE"):
        environment.pop(name or "", "")
        secret = find_secret("PBS_PASSWORD", environment, credential_name="pbs-password")
        assert secret is not None
        found.append(secret.reveal())
    assert found == ["from variable", "from file", "from credential"]


def test_nothing_said_is_no_secret(tmp_path: Path) -> None:
    assert find_secret("PBS_PASSWORD", {}) is None
    assert find_passphrase({"CREDENTIALS_DIRECTORY": str(tmp_path)}) is None


@pytest.mark.parametrize("content", [b"", b"\n"])
def test_blank_credential_is_the_default_of_its_unit_and_no_secret(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "pbs-password").write_bytes(content)
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert find_secret("PBS_PASSWORD", environment, credential_name="pbs-password") is None


def test_passphrase_comes_from_a_credential(tmp_path: Path) -> None:
    (tmp_path / "proxmox-backup-client.encryption-password").write_text("12345")
    assert find_passphrase({"CREDENTIALS_DIRECTORY": str(tmp_path)}) == Secret("12345")


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"", "is empty"), (b"\nx", "is empty"), (b"\xff\xfe", "no UTF-8"), (b"a\tb", "control")],
)
def test_file_without_a_secret_is_refused_and_never_quoted(
    tmp_path: Path, content: bytes, text: str
) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    with pytest.raises(PbsError, match=text) as caught:
        read_secret_file(str(path))
    assert caught.value.__cause__ is None


def test_file_that_is_too_long_or_absent_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    with pytest.raises(PbsError, match="unable to read secret file"):
        read_secret_file(str(path))
    path.write_bytes(b"x" * 5000)
    with pytest.raises(PbsError, match="too long"):
        read_secret_file(str(path))
