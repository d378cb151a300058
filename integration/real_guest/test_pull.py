"""A real guest with the real agent, pulled from Debian's QEMU while it writes."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from integration.conftest import BootGuest
from integration.real_lab import RealLab

BOOT_LIMIT_S = 60.0


def _wait_for(console: Path, word: str) -> None:
    deadline_s = time.monotonic() + BOOT_LIMIT_S
    while word not in (console.read_text(errors="replace") if console.exists() else ""):
        assert time.monotonic() < deadline_s, f"no '{word}' on the console"
        time.sleep(0.1)


def test_frozen_backup_of_a_writing_guest_is_a_clean_file_system(
    boot_guest: BootGuest, real_lab: RealLab
) -> None:
    console = boot_guest()
    text = real_lab.config().read_text()
    real_lab.config().write_text(text.replace("agent: 0", "agent: 1"))
    real_lab.must("lab", "stop", real_lab.root, 100)
    real_lab.must("lab", "start", real_lab.root, 100)
    _wait_for(console, "AGENT")
    for _ in range(20):
        ended = real_lab.must("--root", real_lab.root, 100)
        if "issuing guest-agent 'fs-freeze' command" in ended.err:
            break
        time.sleep(0.5)
    assert "issuing guest-agent 'fs-thaw' command" in ended.err
    assert "data path: pull" in ended.err
    [row] = real_lab.must("lab", "status", real_lab.root).out.splitlines()[1:]
    assert "running" in row
    newest = sorted(real_lab.dump.glob("*.vma"))[-1]
    directory = real_lab.root / "extracted"
    real_lab.must("extract", newest, directory)
    image = directory / "disk-drive-virtio0.raw"
    programs = {**os.environ, "PATH": f"{os.environ['PATH']}:/sbin:/usr/sbin"}
    checked = subprocess.run(
        ["e2fsck", "-fn", image], env=programs, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
    listed = subprocess.run(
        ["debugfs", "-R", "cat /ticks", image], env=programs, capture_output=True, check=True
    )
    # The guest appends whole lines and syncs; a torn image would show other bytes.
    assert listed.stdout.count(b"tick\n") * len(b"tick\n") == len(listed.stdout) > 0
