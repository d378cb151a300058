"""Storages of a lab as an operator meets them, by the whole command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.lab_command import Run, archives
from tests.pbs_server import DATASTORE, MIB, served_pbs, upload
from vzdump_qemu.formats.pbs import Repository
from vzdump_qemu.stores.pbs import load_backup_key
from vzdump_qemu.stores.pbs.key_making import create_key_file
from vzdump_qemu.stores.system import SystemClock

CONFIGS = (("qemu-server.conf", b"scsi0: local:100/vm-100-disk-0.raw,size=4M\n"),)


def add_storage(lab: Path, text: str) -> None:
    path = lab / "etc/pve/storage.cfg"
    path.write_text(f"{path.read_text().rstrip()}\n\n{text}")


@pytest.mark.parametrize(
    ("storage", "text"),
    [
        (
            "nfs: aim\n\tserver s\n\texport /e\n\tpath {x}\n\tcontent backup\n",
            "could not activate storage 'aim': unable to activate storage 'aim' - directory is "
            "expected to be a mount point but is not mounted: '{x}'",
        ),
        (
            "dir: aim\n\tpath {x}\n\tcontent backup\n\tis_mountpoint 1\n",
            "could not activate storage 'aim': unable to activate storage 'aim' - directory is "
            "expected to be a mount point but is not mounted: '{x}'",
        ),
        (
            "dir: aim\n\tpath {x}\n\tcontent images\n",
            "could not activate storage 'aim': can't use storage 'aim' for backups - wrong "
            "content type",
        ),
        (
            "dir: aim\n\tpath {x}\n\tcontent backup\n\tdisable\n",
            "could not activate storage 'aim': storage 'aim' is disabled",
        ),
        (
            "dir: aim\n\tpath {x}\n\tcontent backup\n\tnodes other\n",
            "could not activate storage 'aim': storage 'aim' is not available on node 'lab'",
        ),
        (
            "dir: aim\n\tcontent backup\n",
            "could not activate storage 'aim': storage 'aim' does not exist",
        ),
    ],
    ids=["nfs", "is_mountpoint", "content", "disabled", "nodes", "no path"],
)
def test_row_5_3_unusable_target_is_refused_before_a_vm_is_touched(
    storage: str, text: str, command: Run, lab: Path
) -> None:
    aim = lab.parent / "aim"
    add_storage(lab, storage.format(x=aim))
    before = (lab / "etc/pve/qemu-server/100.conf").read_bytes()
    outcome = command("--root", lab, 100, "--storage", "aim", "--mode", "stop")
    assert outcome.code == 255
    assert text.format(x=aim) in outcome.err
    assert "Starting Backup of VM" not in outcome.err
    assert (lab / "etc/pve/qemu-server/100.conf").read_bytes() == before


def test_archives_of_every_storage_of_files_are_listed(command: Run, lab: Path) -> None:
    made = command("--root", lab, 100, "--compress", 0)
    assert made.code == 0, made.err
    [archive] = archives(lab)
    nas = lab.parent / "nas"
    (nas / "save").mkdir(parents=True)
    archive.rename(nas / "save" / archive.name)
    add_storage(
        lab,
        f"cifs: nas\n\tserver s\n\tshare e\n\tpath {nas}\n\tcontent backup,images\n"
        "\tcontent-dirs backup=save\n",
    )
    for words in (("list", lab), ("list", lab, "--storage", "nas")):
        [row] = json.loads(command(*words, "--json").out)
        assert row["path"] == str(nas / "save" / archive.name)
    # What is not mounted by us is not written to by us.
    path = nas / "save" / archive.name
    refused = command("restore", path, 101, "--root", lab, "--storage", "nas")
    assert "storage 'nas' does not exist" in refused.err
    assert not (nas / "images").exists()


@pytest.mark.slow
def test_row_5_8_missing_key_hinders_no_look_at_the_backups(command: Run, lab: Path) -> None:
    """Listing and reading what is plain need none; a new backup is refused for want of it."""
    directory = lab.parent / "pbs"
    directory.mkdir()
    with served_pbs(directory) as served:
        key_path = str(directory / "key.json")
        create_key_file(key_path, clock=SystemClock(), passphrase=None)
        disks = {"drive-scsi0": bytes(4 * MIB)}
        upload(served.target(), disks, CONFIGS)
        upload(
            served.target(),
            disks,
            CONFIGS,
            time_s=1_700_003_600,
            key=load_backup_key(key_path),
        )
        repository = Repository.parse(served.repository)
        add_storage(
            lab,
            f"pbs: bak\n\tserver {repository.host}\n\tdatastore {DATASTORE}\n"
            f"\tport {repository.port}\n\tusername {repository.auth_id}\n"
            f"\tfingerprint {served.environment['PBS_FINGERPRINT']}\n\tencryption-key 1\n",
        )
        secrets = lab / "etc/pve/priv/storage"
        secrets.mkdir(parents=True)
        (secrets / "bak.pw").write_text(served.environment["PBS_PASSWORD"])
        listed = command("list", lab, "--storage", "bak", "--json")
        assert listed.code == 0, listed.err
        plain, sealed = (row["path"] for row in json.loads(listed.out))
        assert command("verify", plain, "--root", lab).code == 0
        refused = command("verify", sealed, "--root", lab)
        assert refused.code != 0
        assert "key" in refused.err
        backup = command("--root", lab, 100, "--storage", "bak")
        assert backup.code == 255
        assert "encryption configured ('1') but no encryption key file found!" in backup.err
