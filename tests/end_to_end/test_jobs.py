"""Jobs over several VMs, and what the files of a run are called (10.1.2 and 10.1.3).

Log and exit code of the real command, in a lab with three VMs that are off.
"""

from __future__ import annotations

import fcntl
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.lab import TOOL, Ended, Lab

pytestmark = pytest.mark.slow

VMIDS = (100, 101, 102)


@pytest.fixture(scope="module")
def shared_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="vzj-", dir="/tmp") as directory:
        lab = Lab(Path(directory) / "lab", tmp_path_factory.mktemp("bin"))
        vms = [word for vmid in VMIDS for word in ("--vm", vmid)]
        lab.must("lab", "create", lab.root, *vms, "--disk", "scsi0=1M", "--fill", 3)
        yield lab
        lab.must("lab", "destroy", lab.root)


@pytest.fixture
def node(shared_node: Lab) -> Iterator[Lab]:
    configs = {path: path.read_bytes() for path in shared_node.config.parent.iterdir()}
    yield shared_node
    for path, content in configs.items():
        path.write_bytes(content)
    shared_node.remove_archives()


def _job(lab: Lab, *words: object) -> Ended:
    return lab.tool("--root", lab.root, *words)


def _ends(ended: Ended) -> list[str]:
    """The lines that tell how each VM and the job ended, without how long it took."""
    begins = ("INFO: Finished", "INFO: Backup job", "ERROR: ", "TASK ")
    lines = [line for line in ended.err.splitlines() if line.startswith(begins)]
    return [line.partition(" (00:")[0] for line in lines]


def _lock(lab: Lab, vmid: int) -> None:
    with open(lab.config.with_name(f"{vmid}.conf"), "a", encoding="utf-8") as config:
        config.write("lock: migrate\n")


def test_row_10_1_2_job_without_failure_ends_with_0(node: Lab) -> None:
    ended = _job(node, "--all")
    assert ended.code == 0
    assert _ends(ended) == [
        *(f"INFO: Finished Backup of VM {vmid}" for vmid in VMIDS),
        "INFO: Backup job finished successfully",
        "TASK OK",
    ]
    assert len(node.archives()) == 3


def test_row_10_1_2_one_that_fails_of_three_leaves_the_others_done(node: Lab) -> None:
    _lock(node, 101)
    ended = _job(node, *VMIDS)
    assert ended.code == 255
    assert _ends(ended) == [
        "INFO: Finished Backup of VM 100",
        "ERROR: Backup of VM 101 failed - VM is locked (migrate)",
        "INFO: Finished Backup of VM 102",
        "INFO: Backup job finished with errors",
        "TASK ERROR: job errors",
    ]
    assert [path.name.split("-")[2] for path in node.archives()] == ["100", "102"]
    assert node.config.with_name("101.conf").read_text().endswith("lock: migrate\n")


def test_row_10_1_2_unknown_vm_fails_visibly_beside_the_others(node: Lab) -> None:
    ended = _job(node, 100, 999)
    assert ended.code == 255
    assert _ends(ended) == [
        "INFO: Finished Backup of VM 100",
        "ERROR: Backup of VM 999 failed - unable to find VM '999'",
        "INFO: Backup job finished with errors",
        "TASK ERROR: job errors",
    ]


def test_row_10_1_2_signal_in_the_middle_ends_the_job(node: Lab) -> None:
    words = [*TOOL, "--root", node.root, *VMIDS, "--bwlimit", 100]
    with subprocess.Popen(
        [str(word) for word in words], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line.rstrip("\n"))
            if "creating vzdump archive" in line:
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 255
    assert "ERROR: Backup of VM 100 failed - interrupted by signal" in lines
    assert lines[-2:] == [
        "ERROR: Backup job failed - interrupted by signal",
        "TASK ERROR: interrupted by signal",
    ]
    assert not any("Starting Backup of VM 101" in line for line in lines)
    assert node.archives() == []


def test_row_10_1_2_busy_lock_is_not_waited_for_with_lockwait_0(node: Lab) -> None:
    lock_path = node.root / "var/run/vzdump.lock"
    with open(lock_path, "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = _job(node, 100, "--lockwait", 0)
    assert ended.code == 255
    assert "can't acquire lock" in ended.err and "(wait = 0)" in ended.err
    assert node.archives() == []


@pytest.mark.parametrize(
    ("words", "temporary", "final"),
    [
        (("--compress", "zstd"), ".vma.dat", ".vma.zst"),
        (("--compress", "gzip"), ".vma.dat", ".vma.gz"),
        (("--compress", "0"), ".dat", ".vma"),
    ],
)
def test_row_10_1_3_archive_bears_its_name_only_when_it_is_done(
    node: Lab, words: tuple[str, ...], temporary: str, final: str
) -> None:
    seen: set[str] = set()

    def look(_: object) -> None:
        seen.update(path.name for path in node.dump.iterdir())

    code, events = node.back_up_and_act(
        {"ProgressMade": look, "TransferEnded": look},
        *words,
        *("--storage", "local", "--notes-template", "{{vmid}}", "--protected", "1"),
    )
    assert code == 0
    [published] = [event for event in events if event["event"] == "ArchivePublished"]
    base = Path(published["archive_path"]).name.removesuffix(final)
    assert f"{base}{temporary}" in seen and f"{base}{final}" not in seen
    name = f"{base}{final}"
    assert sorted(path.name for path in node.dump.iterdir()) == sorted(
        [name, f"{name}.notes", f"{name}.protected", f"{base}.log"]
    )


def test_row_10_1_3_failed_run_leaves_its_log_alone(node: Lab) -> None:
    _lock(node, 100)
    assert _job(node, 100).code == 255
    [left] = node.dump.iterdir()
    assert left.name.startswith("vzdump-qemu-100-") and left.suffix == ".log"
