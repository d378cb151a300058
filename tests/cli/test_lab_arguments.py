"""Disks and programs on the command line of ``lab``."""

import os
import sys
from pathlib import Path

import click
import pytest

from vzdump_qemu.cli.lab_arguments import DiskRequest, DiskType, resolve_qemu
from vzdump_qemu.units import MIB


@pytest.mark.parametrize(
    ("text", "disk"),
    [
        ("scsi0=32M", DiskRequest(key="scsi0", size_bytes=32 * MIB, format="raw")),
        ("virtio1=1024", DiskRequest(key="virtio1", size_bytes=1024, format="raw")),
        ("sata0=1.5K,format=qcow2", DiskRequest(key="sata0", size_bytes=1536, format="qcow2")),
    ],
)
def test_disk_is_read(text: str, disk: DiskRequest) -> None:
    assert DiskType().convert(text, None, None) == disk


@pytest.mark.parametrize(
    "text", ["scsi0", "scsi0=", "=32M", "scsi0=32X", "scsi0=0", "scsi0=100", "scsi0=1M,format=x"]
)
def test_other_text_is_no_disk(text: str) -> None:
    with pytest.raises(click.BadParameter):
        DiskType().convert(text, None, None)


def test_program_outside_the_path_is_found_beside_the_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "some-qemu"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert resolve_qemu("some-qemu") == str(program)
    assert resolve_qemu(os.path.relpath(program)) == str(program)


def test_program_that_is_nowhere_is_named() -> None:
    with pytest.raises(click.UsageError, match="unable to find command 'no-such-qemu'"):
        resolve_qemu("no-such-qemu")
