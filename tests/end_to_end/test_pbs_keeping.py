"""Notes, protection, a rule and the log at a server: real command, real QEMU stand-in and server.

Host behaviour 1.7 (steps 5, 23, 24, 32), 2.6 and 5.8.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.lab import VMID, Ended, Lab
from tests.pbs_server import DATASTORE, ServedPbs, served_pbs
from vzdump_qemu.formats.pbs import BlobDecoder, DataBlob
from vzdump_qemu.stores.pbs import load_backup_key

pytestmark = pytest.mark.slow

STORAGE = "bak"
NO_RIGHT = f"""[[fault]]
kind = "reply"
endpoint = "POST /admin/datastore/{DATASTORE}/prune"
status = 403
text = "permission check failed"
count = 0
"""


@pytest.fixture
def pbs(lab: Lab, tmp_path: Path) -> Iterator[ServedPbs]:
    """A server as a storage of the lab, which keeps one backup and two protected ones."""
    words = ("prune-backups keep-last=1", "max-protected-backups 2")
    with served_pbs(tmp_path / "pbs") as served, as_storage(lab, served, *words):
        yield served


@contextmanager
def as_storage(lab: Lab, served: ServedPbs, *lines: str) -> Iterator[None]:
    config = lab.root / "etc/pve/storage.cfg"
    before = config.read_bytes()
    served.add_to(lab.root, STORAGE, *lines)
    yield
    config.write_bytes(before)
    for path in (lab.root / "etc/pve/priv/storage").iterdir():
        path.unlink()


def back_up(lab: Lab, *words: object) -> Ended:
    return lab.tool("--root", lab.root, VMID, "--storage", STORAGE, *words)


def stored(lab: Lab) -> list[dict[str, Any]]:
    out = lab.must("list", lab.root, "--storage", STORAGE, "--json").out
    rows: list[dict[str, Any]] = json.loads(out)
    return rows


def read_log(pbs: ServedPbs, row: dict[str, Any], key_path: Path | None = None) -> list[str]:
    path = row["path"].removeprefix(f"{STORAGE}:backup/")
    encoded = (pbs.directory / DATASTORE / path / "client.log.blob").read_bytes()
    key = None if key_path is None else load_backup_key(str(key_path)).key
    return bytes(BlobDecoder(key=key).decode(DataBlob.parse(encoded))).decode().splitlines()


@pytest.mark.parametrize("data_path", ["pull", "native", "offline"])
def test_backups_are_noted_protected_pruned_and_logged(
    data_path: str, lab: Lab, pbs: ServedPbs
) -> None:
    if data_path != "offline":
        lab.start()
    words = ("--data-path", data_path, "--notes-template", "{{vmid}}\\n{{cluster}}")
    first = back_up(lab, *words)
    assert first.err.splitlines()[-1] == "TASK OK", first.err
    second = back_up(lab, *words, "--protected")
    assert second.err.splitlines()[-1] == "TASK OK", second.err
    third = back_up(lab, *words)
    assert third.err.splitlines()[-1] == "TASK OK", third.err

    lines = second.err.splitlines()
    order = [
        "INFO: adding notes to backup",
        "INFO: marking backup as protected",
        "INFO: prune older backups with retention: keep-last=1",
        f"INFO: running 'proxmox-backup-client prune' for 'vm/{VMID}'",
        "INFO: pruned 0 backup(s)",
    ]
    at = lines.index(order[0])
    assert lines[at : at + len(order)] == order
    assert "INFO: pruned 1 backup(s) not covered by keep-retention policy" in third.err

    protected, newest = stored(lab)
    assert (protected["protected"], newest["protected"]) == (True, False)
    # The list shows the first line of the notes.
    assert protected["notes"].splitlines()[0] == str(VMID)
    for row, ended in ((protected, second), (newest, third)):
        log = read_log(pbs, row)
        began = f"INFO: Starting Backup of VM {VMID} (qemu)"
        assert log[0].endswith(began)
        assert " INFO: Backup finished at " in log[-1]
        told = ended.err.splitlines()
        run = told[told.index(began) : -2]
        assert [line[20:] for line in log] == run
    lab.must("verify", newest["path"], "--root", lab.root)


def test_log_of_an_encrypted_backup_is_encrypted(lab: Lab, pbs: ServedPbs) -> None:
    key_path = lab.root / f"etc/pve/priv/storage/{STORAGE}.enc"
    lab.must("key", "create", key_path, "--kdf", "none")
    with open(lab.root / "etc/pve/storage.cfg", "a", encoding="utf-8") as file:
        file.write("\tencryption-key 1\n")
    lab.start()
    done = back_up(lab, "--data-path", "pull")
    assert done.err.splitlines()[-1] == "TASK OK", done.err
    [row] = stored(lab)
    assert " INFO: Backup finished at " in read_log(pbs, row, key_path)[-1]


def test_limits_of_the_storage_refuse_before_the_guest_is_touched(lab: Lab, pbs: ServedPbs) -> None:
    lab.start()
    for _ in range(2):
        assert back_up(lab, "--protected", "--data-path", "pull").code == 0
    ended = back_up(lab, "--protected", "--data-path", "pull")
    assert ended.code == 255
    text = "The number of protected backups per guest is limited to 2 on storage 'bak'"
    assert f"ERROR: Backup of VM {VMID} failed - {text}" in ended.err
    assert back_up(lab, "--data-path", "pull").code == 0
    ended = back_up(lab, "--remove", 0, "--data-path", "pull")
    assert "There is a max backup limit of 1 enforced by the target storage" in ended.err
    assert len(stored(lab)) == 3
    lab.assert_clean("running")


def test_token_that_may_not_prune_keeps_the_backup_and_fails_the_vm(
    lab: Lab, tmp_path: Path
) -> None:
    rule = "prune-backups keep-last=1"
    with served_pbs(tmp_path / "pbs", NO_RIGHT) as served, as_storage(lab, served, rule):
        lab.start()
        ended = back_up(lab, "--data-path", "pull")
        assert ended.code == 255
        at = ended.err.index(f"ERROR: prune 'vm/{VMID}': permission check failed\n")
        failed = f"ERROR: Backup of VM {VMID} failed - error pruning backups - check log\n"
        assert failed in ended.err[at:]
        assert len(stored(lab)) == 1
        lab.assert_clean("running")
