"""``list``, ``show``, ``verify``, ``extract`` and ``restore`` of backups at a server."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.lab_command import Run
from tests.pbs_server import MIB, ServedPbs, served_pbs, upload
from vzdump_qemu.stores.pbs import load_backup_key
from vzdump_qemu.stores.pbs.key_making import create_key_file
from vzdump_qemu.stores.system import SystemClock

pytestmark = pytest.mark.slow

CONFIG = b"""#notes
cores: 1
name: web
scsi0: nas:100/vm-100-disk-0.qcow2,discard=on,size=9M
virtio1: nas:100/vm-100-disk-1.raw,size=1049088
#qmdump#map:scsi0:drive-scsi0:nas:qcow2:
#qmdump#map:virtio1:drive-virtio1:nas:raw:
"""
FIREWALL = b"[OPTIONS]\nenable: 1\n"
CONFIGS = (("qemu-server.conf", CONFIG), ("fw.conf", FIREWALL))
# A whole chunk of zeroes, one with zeroes in it that occurs twice, and a short last one.
_PIECE = random.Random(1).randbytes(MIB) + bytes(3 * MIB)
DISKS = {
    "drive-scsi0": _PIECE + bytes(4 * MIB) + _PIECE + b"end" * 1000,
    "drive-virtio1": random.Random(2).randbytes(1_049_088),
}
FIRST, SECOND = "vm/100/2023-11-14T22:13:20Z", "vm/100/2023-11-14T23:13:20Z"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPbs]:
    """With two backups of VM 100, the second encrypted; their key is ``key`` beside it."""
    with served_pbs(tmp_path_factory.mktemp("pbs")) as served:
        for name in ("key", "other"):
            create_key_file(key_path(served, name), clock=SystemClock(), passphrase=None)
        key = load_backup_key(key_path(served, "key"))
        upload(served.target(), DISKS, CONFIGS)
        upload(served.target(), DISKS, CONFIGS, time_s=1_700_003_600, key=key)
        yield served


@pytest.fixture
def pbs(server: ServedPbs, monkeypatch: pytest.MonkeyPatch) -> ServedPbs:
    """The server, known by the environment."""
    server.announce(monkeypatch)
    return server


@pytest.fixture
def spoiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedPbs]:
    """Another server with one backup, for tests that damage it."""
    with served_pbs(tmp_path / "pbs") as served:
        served.announce(monkeypatch)
        upload(served.target(), DISKS, CONFIGS)
        yield served


def key_path(served: ServedPbs, name: str) -> str:
    return str(served.directory / f"{name}.json")


def damage(served: ServedPbs) -> None:
    """Change one byte of every chunk."""
    for path in served.chunk_paths():
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)


def test_list_names_backups_as_other_verbs_take_them(pbs: ServedPbs, command: Run) -> None:
    listed = json.loads(command("list", "--json").out)
    assert [(row["path"], row["vmid"], row["protected"]) for row in listed] == [
        (FIRST, 100, False),
        (SECOND, 100, False),
    ]
    assert listed[0]["owner"] == "root@pam!vzdump"
    assert [bool(row["key"]) for row in listed] == [False, True]
    assert listed[0]["size_bytes"] > sum(len(content) for content in DISKS.values())
    text = command("list", "--repository", pbs.repository).out
    assert text.splitlines()[0].split() == ["VMID", "CREATED", "SIZE", "BACKUP"]
    assert text.splitlines()[2].endswith(SECOND)


def test_show_tells_the_manifest_without_a_key(pbs: ServedPbs, command: Run) -> None:
    facts = json.loads(command("show", "vm/100/latest", "--json").out)
    assert (facts["backup"], facts["encryption"], facts["signature"]) == (
        SECOND,
        "encrypt",
        "not checked",
    )
    assert [row["name"] for row in facts["configs"]] == ["qemu-server.conf", "fw.conf"]
    assert facts["devices"] == [
        {"name": name, "size_bytes": len(content)} for name, content in DISKS.items()
    ]
    key_words = ("--keyfile", key_path(pbs, "key"))
    assert "signature    right" in command("show", SECOND, *key_words).out
    assert "signature    none" in command("show", FIRST).out


def test_show_prints_a_stored_file_even_if_it_is_encrypted(pbs: ServedPbs, command: Run) -> None:
    assert command("show", FIRST, "--config", "fw.conf").out.encode() == FIREWALL
    key_words = ("--keyfile", key_path(pbs, "key"))
    shown = command("show", SECOND, "--config", "qemu-server.conf", *key_words)
    assert shown.out.encode() == CONFIG
    missing = command("show", FIRST, "--config", "x")
    assert missing.code == 10
    assert missing.err == (
        "ERROR: archive contains no file 'x'\nhint: it has qemu-server.conf, fw.conf\n"
    )


@pytest.mark.parametrize("backup", [FIRST, SECOND])
def test_verify_counts_every_chunk(backup: str, pbs: ServedPbs, command: Run) -> None:
    outcome = command("verify", backup, "--keyfile", key_path(pbs, "key"), "--json")
    assert outcome.code == 0, outcome.err
    told = json.loads(outcome.out)
    assert told["whole"] is True
    counts = [
        (row["chunk_count"], row["zero_chunk_count"], row["fetched_chunk_count"])
        for row in told["devices"]
    ]
    assert counts == [(4, 1, 2), (1, 0, 1)]
    text = command("verify", FIRST).out
    assert text.endswith(f"{FIRST}: whole\n")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "missing key - manifest was created with key "),
        (("--keyfile", "other"), "wrong key - manifest's key "),
    ],
)
@pytest.mark.parametrize("verb", ["verify", "extract", "restore"])
def test_encrypted_backup_without_its_key_is_refused(
    verb: str, words: tuple[str, ...], text: str, pbs: ServedPbs, command: Run, lab: Path
) -> None:
    key_words = (words[0], key_path(pbs, words[1])) if words else ()
    before = sorted(lab.rglob("*"))
    more = {
        "verify": (),
        "extract": (lab / "out",),
        "restore": (101, "--root", lab),
    }[verb]
    outcome = command(verb, SECOND, *more, *key_words)
    assert outcome.code == 62
    assert outcome.err.startswith(f"ERROR: {text}")
    assert sorted(lab.rglob("*")) == before


def test_missing_key_file_is_named(pbs: ServedPbs, command: Run, tmp_path: Path) -> None:
    outcome = command("verify", SECOND, "--keyfile", tmp_path / "none")
    assert outcome.code == 62
    assert outcome.err.splitlines()[0] == (
        f"ERROR: unable to read encryption key '{tmp_path}/none' - No such file or directory"
    )


@pytest.mark.parametrize("backup", [FIRST, SECOND])
def test_extract_gives_the_bytes_back(
    backup: str, pbs: ServedPbs, command: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    outcome = command("extract", backup, out, "--keyfile", key_path(pbs, "key"))
    assert outcome.code == 0, outcome.err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        "qemu-server.conf": CONFIG,
        "fw.conf": FIREWALL,
        **{f"disk-{name}.raw": content for name, content in DISKS.items()},
    }
    # Zeroes take no room, be it a whole chunk or a part of one.
    assert os.stat(out / "disk-drive-scsi0.raw").st_blocks * 512 < 3 * MIB


def test_extract_of_one_disk_writes_that_alone(
    pbs: ServedPbs, command: Run, tmp_path: Path
) -> None:
    outcome = command("extract", FIRST, tmp_path / "out", "--disk", "drive-virtio1", "--json")
    assert [row["name"] for row in json.loads(outcome.out)["devices"]] == ["drive-virtio1"]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["disk-drive-virtio1.raw", "fw.conf", "qemu-server.conf"]
    unknown = command("extract", FIRST, tmp_path / "none", "--disk", "drive-ide0")
    assert unknown.code == 10
    assert not (tmp_path / "none").exists()


def test_restore_makes_a_vm_with_the_same_disks(pbs: ServedPbs, command: Run, lab: Path) -> None:
    restored = command(
        *("restore", "vm/100/latest", 101, "--root", lab),
        *("--keyfile", key_path(pbs, "key"), "--json"),
    )
    assert restored.code == 0, restored.err
    told = json.loads(restored.out)
    for disk, content in zip(told["disks"], DISKS.values(), strict=True):
        assert Path(disk["path"]).read_bytes() == content
    config = (lab / "etc/pve/qemu-server/101.conf").read_text()
    assert "scsi0: local:101/vm-101-disk-0.raw,discard=on,size=" in config
    assert "qmdump" not in config
    assert (lab / "etc/pve/firewall/101.fw").read_bytes() == FIREWALL
    assert command("lab", "start", lab, 101).code == 0


def test_server_that_is_a_storage_is_named_by_volume_ids(
    pbs: ServedPbs, command: Run, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pbs.add_to(lab, "bak")
    for name in pbs.environment:
        monkeypatch.delenv(name)
    listed = json.loads(command("list", lab, "--storage", "bak", "--json").out)
    name = listed[0]["path"]
    assert name == f"bak:backup/{FIRST}"
    assert command("verify", name, "--root", lab).out.endswith(f"{name}: whole\n")
    assert command("show", FIRST, "--root", lab, "--storage", "bak").code == 0
    assert command("restore", name, 101, "--root", lab).code == 0
    refused = command("show", name, "--root", lab, "--keyfile", "x")
    assert (refused.code, "cannot use option 'keyfile'" in refused.err) == (10, True)


@pytest.mark.parametrize("verb", ["verify", "extract", "restore"])
def test_damaged_chunk_is_named_and_leaves_nothing(
    verb: str, spoiled: ServedPbs, command: Run, lab: Path
) -> None:
    damage(spoiled)
    before = sorted(lab.rglob("*"))
    more = {"verify": (), "extract": (lab / "out",), "restore": (101, "--root", lab)}[verb]
    outcome = command(verb, FIRST, *more)
    assert outcome.code == 61
    [line] = outcome.err.splitlines()
    assert "drive-scsi0: chunk " in line
    assert sorted(lab.rglob("*")) == before


def test_lost_chunk_is_no_whole_backup(spoiled: ServedPbs, command: Run) -> None:
    for path in spoiled.chunk_paths():
        path.unlink()
    outcome = command("verify", FIRST, "--json")
    assert outcome.code == 61
    told = json.loads(outcome.out)
    assert told["whole"] is False
    assert told["error"].startswith("drive-scsi0: the server has lost a part - ")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("show", "vm/999/latest"), 60, "there is no finished backup of 'vm/999'"),
        (
            ("show", "vm/100/2020-01-01T00:00:00Z"),
            64,
            "snapshot tank:vm/100/2020-01-01T00:00:00Z does not exist.",
        ),
        (("verify", "ct/100/latest"), 10, "'ct/100/latest' is no backup of a VM"),
        (("verify", "bak:backup/vm/1/x", "--root", "{lab}"), 13, "storage 'bak' does not exist"),
        (
            ("verify", "local:backup/vm/100/latest", "--root", "{lab}"),
            10,
            "storage 'local' is no backup server",
        ),
        (
            ("verify", "b2:backup/vm/1/latest", "--storage", "b1"),
            10,
            "'b2:backup/vm/1/latest' is not in storage 'b1'",
        ),
        (("list", "{lab}", "--repository", "x"), 2, "repository: option conflicts"),
        (("show", "vm/100/0", "--repository", "x:y:z"), 10, "not a repository: 'x:y:z'"),
    ],
)
def test_name_that_leads_nowhere_is_told(
    words: tuple[str, ...], code: int, text: str, pbs: ServedPbs, command: Run, lab: Path
) -> None:
    outcome = command(*(word.replace("{lab}", str(lab)) for word in words))
    assert (outcome.code, text in outcome.err) == (code, True), outcome.err


def test_wrong_certificate_is_refused_by_every_verb(
    pbs: ServedPbs, command: Run, lab: Path
) -> None:
    pin = ":".join(["00"] * 32)
    more: dict[str, tuple[object, ...]] = {
        "list": (),
        "show": (FIRST,),
        "verify": (FIRST,),
        "extract": (FIRST, lab / "out"),
        "restore": (FIRST, 101, "--root", lab),
    }
    for verb, words in more.items():
        outcome = command(verb, *words, "--fingerprint", pin)
        assert outcome.code == 60
        assert outcome.err.startswith("ERROR: Certificate fingerprint was not confirmed. (")
    assert not (lab / "out").exists()


def test_path_of_an_archive_wins_over_the_name_of_a_backup(
    pbs: ServedPbs, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / FIRST
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no archive")
    assert command("show", FIRST).code == 50
    assert command("show", FIRST, "--repository", pbs.repository).code == 0
