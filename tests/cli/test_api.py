"""The public entry points of the package."""

import subprocess
import sys
from pathlib import Path

import pytest

import vzdump_qemu
from vzdump_qemu.errors import StorageError
from vzdump_qemu.events import Event, JobEnded
from vzdump_qemu.node.lab import LabDisk, create_lab, destroy_lab
from vzdump_qemu.node.lab_config import LabConfig
from vzdump_qemu.plan.options import TargetOptions


@pytest.mark.slow
async def test_backup_from_python_tells_how_it_ended(short_path: Path) -> None:
    program = str(Path(sys.executable).with_name("vzsim-qemu"))
    root = str(short_path / "lab")
    disks = [LabDisk(key="scsi0", size_bytes=1024 * 1024)]
    await create_lab(root, vmids=[100], disks=disks, config=LabConfig(qemu=program))
    heard: list[Event] = []
    try:
        async with vzdump_qemu.open_node(root) as node:
            result = await vzdump_qemu.backup(node, 100, emit=heard.append)
            assert result.error is None
            assert Path(result.archive_path).stat().st_size == result.size_bytes
            assert isinstance(heard[-1], JobEnded)

            unknown = await vzdump_qemu.backup(node, 999)
            assert unknown.error is not None

            options = vzdump_qemu.BackupOptions(target=TargetOptions(storage_id="nope"))
            with pytest.raises(StorageError, match="'nope' does not exist"):
                await vzdump_qemu.backup(node, 100, options)
    finally:
        await destroy_lab(root)


def test_public_names_are_there_and_no_others() -> None:
    assert [name for name in vzdump_qemu.__all__ if not hasattr(vzdump_qemu, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = vzdump_qemu.nonsense


@pytest.mark.slow
def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, vzdump_qemu; print([n for n in ('asyncio', 'numpy') if n in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert ended.stdout == b"[]\n"
