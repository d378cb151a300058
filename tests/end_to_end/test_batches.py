"""Jobs over running VMs at once: the real command, and a process for every VM's QEMU."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.lab import TOOL, Lab
from vzdump_qemu.node.upid import parse_upid

pytestmark = pytest.mark.slow

VMIDS = (100, 101, 102)


@pytest.fixture(scope="module")
def shared_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="vzb-", dir="/tmp") as directory:
        lab = Lab(Path(directory) / "lab", tmp_path_factory.mktemp("bin"))
        vms = [word for vmid in VMIDS for word in ("--vm", vmid)]
        lab.must("lab", "create", lab.root, *vms, "--disk", "scsi0=2M", "--fill", 3)
        lab.must("lab", "start", lab.root)
        (lab.root / "var/log/pve/tasks").mkdir(parents=True)
        yield lab
        lab.must("lab", "destroy", lab.root)


@pytest.fixture
def node(shared_node: Lab) -> Iterator[Lab]:
    yield shared_node
    shared_node.remove_archives()


def _vms_of(node: Lab) -> list[int]:
    return [int(path.name.split("-")[2]) for path in node.archives()]


def _results(path: Path) -> dict[int, Mapping[str, Any]]:
    return {result["vmid"]: result for result in json.loads(path.read_text())}


def _spawn(node: Lab, *words: object) -> subprocess.Popen[str]:
    argv = [*TOOL, "--root", str(node.root), "--all", *map(str, words)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _assert_vms_as_before(node: Lab) -> None:
    states = json.loads(node.must("lab", "status", node.root, "--json").out)
    assert [vm["run_state"] for vm in states] == ["running"] * len(VMIDS)
    assert not any("lock:" in path.read_text() for path in node.config.parent.iterdir())
    assert list((node.root / "var/lib/vzdump-qemu").iterdir()) == []


def test_vms_are_backed_up_at_once_and_each_archive_is_whole(node: Lab, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    ended = node.tool(
        *("--root", node.root, "--all", "--max-parallel", 2, "--compress", "zstd"),
        *("--bwlimit", 2048, "--results", path),
    )
    assert ended.code == 0, ended.err
    lines = ended.err.splitlines()
    begun = [f"{vmid}: INFO: Starting Backup of VM {vmid} (qemu)" for vmid in VMIDS]
    at = [lines.index(line) for line in begun]
    ends = [i for i, line in enumerate(lines) if "INFO: Finished Backup of VM" in line]
    assert at[0] < at[1] < ends[0] < at[2]
    assert lines[-1] == "TASK OK"
    assert _vms_of(node) == list(VMIDS)
    for archive in node.archives():
        node.must("verify", archive)
    results = _results(path)
    assert [results[vmid]["status"] for vmid in VMIDS] == ["ok"] * 3
    assert sorted(result["archive"] for result in results.values()) == [
        str(archive) for archive in node.archives()
    ]
    for vmid in VMIDS:
        log = (node.root / f"var/log/vzdump/qemu-{vmid}.log").read_text()
        assert f"Finished Backup of VM {vmid}" in log
        assert not any(f"VM {other} " in log for other in VMIDS if other != vmid)
    assert not (node.root / "var/run/vzdump.pid").exists()
    _assert_vms_as_before(node)


def test_row_1_5_stop_ends_a_job_and_all_its_guests_are_put_back(node: Lab, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    words = ("--max-parallel", 2, "--bwlimit", 200, "--output", "json", "--results", path)
    with _spawn(node, *words) as process:
        assert process.stdout is not None
        accepted: set[int] = set()
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "JobAccepted":
                accepted.add(event["vmid"])
            if len(accepted) == 2:
                break
        upid = parse_upid((node.root / "var/run/vzdump.pid").read_text())
        assert upid is not None and upid.process_id == process.pid
        node.must("--root", node.root, "--stop")
        rest = [json.loads(line) for line in process.stdout]
    assert process.returncode == 255
    assert accepted == {100, 101}
    failed = {event["vmid"]: event["text"] for event in rest if event["event"] == "RunFailed"}
    assert failed == dict.fromkeys((100, 101), "interrupted by signal")
    results = _results(path)
    assert [results[vmid]["status"] for vmid in VMIDS] == ["err", "err", "todo"]
    assert _vms_of(node) == []
    assert (node.root / "var/run/vzdump.pid").exists()
    _assert_vms_as_before(node)
    assert node.tool("--root", node.root, "--stop").code == 0


def test_row_1_13_further_signals_still_put_every_guest_back(node: Lab) -> None:
    with _spawn(node, "--max-parallel", 3, "--bwlimit", 200, "--output", "json") as process:
        assert process.stdout is not None
        heard = []
        for line in process.stdout:
            heard.append(json.loads(line)["event"])
            if heard[-1] in ("JobAccepted", "JobAborting", "RunFailed"):
                process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == 255
    assert heard[-1] == "JobEnded"
    assert _vms_of(node) == []
    _assert_vms_as_before(node)


def test_job_that_is_killed_leaves_every_guest_to_a_guardian_of_its_own(node: Lab) -> None:
    with _spawn(node, "--max-parallel", 3, "--bwlimit", 200, "--output", "json") as process:
        assert process.stdout is not None
        accepted = 0
        for line in process.stdout:
            accepted += json.loads(line)["event"] == "JobAccepted"
            if accepted == len(VMIDS):
                break
        process.send_signal(signal.SIGKILL)
    node.must("recover", "--root", node.root)
    _assert_vms_as_before(node)
    ended = node.tool("--root", node.root, "--all", "--max-parallel", 3)
    assert ended.code == 0, ended.err
    assert _vms_of(node) == list(VMIDS)


def test_row_1_2_task_log_holds_the_job(node: Lab) -> None:
    ended = node.tool("--root", node.root, 100, "--quiet")
    assert (ended.code, ended.err) == (0, "")
    newest = max(
        (node.root / "var/log/pve/tasks").glob("*/UPID:*:vzdump:100:root@pam:"),
        key=lambda path: path.stat().st_mtime_ns,
    )
    lines = newest.read_text().splitlines()
    assert lines[0].startswith("INFO: starting new backup job: vzdump 100")
    assert lines[-1] == "TASK OK"
