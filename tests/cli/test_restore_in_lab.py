"""``restore`` and ``lab``: what stands in the way, and what a failure leaves."""

import json
from pathlib import Path

import pytest

from tests.cli.lab_command import DATA, Run, archives

pytestmark = pytest.mark.slow


def files(lab: Path) -> set[str]:
    kept = ("etc", "var/lib/vz/images")
    return {str(path.relative_to(lab)) for name in kept for path in (lab / name).rglob("*")}


@pytest.fixture
def archive_path(lab: Path, command: Run) -> Path:
    assert command("--root", lab, 100).code == 0
    return archives(lab)[0]


def test_restore_over_an_existing_vm_needs_force(
    lab: Path, command: Run, archive_path: Path
) -> None:
    before = files(lab)
    refused = command("restore", archive_path, 100, "--root", lab)
    assert refused.code == 10
    assert "VM 100 already exists" in refused.err
    assert files(lab) == before

    restored = command("restore", archive_path, 100, "--root", lab, "--force", "--json")
    assert restored.code == 0, restored.err
    told = json.loads(restored.out)
    assert sorted(told["removed_volids"]) == [
        "local:100/vm-100-disk-0.raw",
        "local:100/vm-100-disk-1.raw",
    ]
    images = {path.name for path in (lab / "var/lib/vz/images/100").iterdir()}
    assert images == {"vm-100-disk-2.raw", "vm-100-disk-3.raw"}
    assert "lock:" not in (lab / "etc/pve/qemu-server/100.conf").read_text()
    assert command("lab", "start", lab, 100).code == 0


def test_restore_over_a_running_vm_is_refused_even_with_force(
    lab: Path, command: Run, archive_path: Path
) -> None:
    assert command("lab", "start", lab, 100, "--paused").code == 0
    refused = command("restore", archive_path, 100, "--root", lab, "--force")
    assert refused.code == 75
    assert "VM 100 is running" in refused.err


def test_restore_over_a_locked_vm_is_refused(lab: Path, command: Run, archive_path: Path) -> None:
    config = lab / "etc/pve/qemu-server/100.conf"
    config.write_text(config.read_text() + "lock: migrate\n")
    refused = command("restore", archive_path, 100, "--root", lab, "--force")
    assert refused.code == 12
    assert "VM is locked (migrate)" in refused.err


@pytest.mark.parametrize("vmid", [100, 101])
def test_failed_restore_leaves_nothing(
    lab: Path, command: Run, archive_path: Path, vmid: int
) -> None:
    before = files(lab)
    config = (lab / "etc/pve/qemu-server/100.conf").read_text()
    damaged = archive_path.read_bytes()[:-70000]
    archive_path.write_bytes(damaged)
    failed = command("restore", archive_path, vmid, "--root", lab, "--force")
    assert failed.code == 50
    assert files(lab) == before
    assert (lab / "etc/pve/qemu-server/100.conf").read_text() == config


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ((99, "--root", "{lab}"), 10, "strange VM ID '99'"),
        ((101, "--root", "{lab}", "--storage", "nope"), 13, "storage 'nope' does not exist"),
        ((101, "--root", "/nonexistent-lab"), 10, "not laid out like a PVE node"),
        ((101,), 2, "--root"),
    ],
)
def test_restore_that_cannot_begin_says_why(
    lab: Path, command: Run, words: tuple[object, ...], code: int, text: str
) -> None:
    given = [str(word).replace("{lab}", str(lab)) for word in words]
    outcome = command("restore", DATA / "vma" / "comp-zstd.vma.zst", *given)
    assert (outcome.code, text in outcome.err) == (code, True), outcome.err


def test_archive_without_map_lines_is_refused(lab: Path, command: Run) -> None:
    before = files(lab)
    path = DATA / "vma" / "create-default-names.vma"
    outcome = command("restore", path, 101, "--root", lab)
    # The archive is whole; it is its configuration that cannot be used.
    assert outcome.code == 10
    assert files(lab) == before


def test_lab_status_of_an_unknown_vm_is_an_error(lab: Path, command: Run) -> None:
    assert command("lab", "status", lab, 999).code == 11
    assert command("lab", "create", lab, "--vm", 100).code == 10


def test_lab_starts_paused_and_stops(lab: Path, command: Run) -> None:
    started = command("lab", "start", lab, 100, "--paused", "--json")
    assert [row["run_state"] for row in json.loads(started.out)] == ["prelaunch"]
    assert "stopped" in command("lab", "stop", lab).out
