"""The target's side goes wrong: compressors that fail or die, a disk that is full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.conftest import TMPFS_REASON
from tests.end_to_end.lab import Lab, assert_cause

pytestmark = pytest.mark.slow

PACED = "[backup]\nbytes_per_s = 16777216\n"


def _add_program(lab: Lab, body: str) -> None:
    path = lab.bin_directory / "zstd"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        pytest.param(
            "cat; echo no >&2; exit 3",
            "zstd --threads=1 failed - wrong exit status 3: no",
            id="after-all-data",
        ),
        pytest.param("exit 3", "zstd --threads=1 failed - wrong exit status 3", id="at-once"),
        pytest.param(
            "head -c 65536; kill -9 $$", "wrong exit status 0 (signal 9)", id="killed-midway"
        ),
        pytest.param(
            "head -c 65536; kill -TERM $$", "wrong exit status 0 (signal 15)", id="terminated"
        ),
    ],
)
def test_compressor_that_fails_fails_the_run(lab: Lab, body: str, text: str) -> None:
    lab.start(PACED)
    _add_program(lab, body)
    assert_cause(lab.tool(*lab.backup_words()), lab, text)
    lab.assert_clean("running")
    (lab.bin_directory / "zstd").unlink()
    lab.assert_next_backup_good(restart=False)


@pytest.fixture
def tiny_disk(lab: Lab) -> Iterator[Path]:
    """A file system of one MiB: less than any archive of the lab's VM."""
    path = lab.root.parent / "tiny"
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tiny", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.mark.skipif(bool(TMPFS_REASON), reason=TMPFS_REASON)
@pytest.mark.parametrize("compress", ["zstd", "0"])
def test_full_disk_fails_the_run_with_that_cause(lab: Lab, tiny_disk: Path, compress: str) -> None:
    lab.start(PACED)
    ended = lab.tool("--root", lab.root, 100, "--compress", compress, "--dumpdir", tiny_disk)
    assert_cause(ended, lab, "No space left on device")
    lab.assert_clean("running")
    assert [name for name in os.listdir(tiny_disk) if not name.endswith(".log")] == []
    lab.assert_next_backup_good(restart=False)


@pytest.mark.skipif(bool(TMPFS_REASON), reason=TMPFS_REASON)
def test_disk_that_is_full_before_the_run_fails_it_before_the_freeze(
    lab: Lab, tiny_disk: Path
) -> None:
    lab.start()
    with open(tiny_disk / "ballast.log", "wb", buffering=0) as ballast, pytest.raises(OSError):
        while True:
            ballast.write(bytes(4096))
    ended = lab.tool(*lab.backup_words("--dumpdir", tiny_disk))
    assert_cause(ended, lab, "No space left on device")
    assert "INFO: issuing guest-agent 'fs-freeze' command" not in lab.log()
    lab.assert_clean("running")
    lab.assert_next_backup_good(restart=False)
