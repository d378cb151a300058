"""``vzdump-qemu --qmp SOCK``: a VM that no node knows, by the command itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.lab_command import Run
from vzdump_qemu import api
from vzdump_qemu.api import fit_options
from vzdump_qemu.errors import ConfigError
from vzdump_qemu.events import BackupMode
from vzdump_qemu.node.socket_node import SocketVmOptions
from vzdump_qemu.plan.options import (
    BackupOptions,
    DataPathChoice,
    FleecingOptions,
    TargetOptions,
)
from vzsim.pytest_plugin import FakeQmp, ServedVm


@pytest.fixture
def served(fake_qmp: FakeQmp) -> Iterator[ServedVm]:
    fake_qmp.dialect = "upstream"
    image = fake_qmp.directory / "disk.raw"
    image.write_bytes(b"disk" * (1 << 18))
    fake_qmp.disks = (f"scsi0={image}",)
    with fake_qmp.served() as vm:
        yield vm


@pytest.mark.slow
def test_vm_is_backed_up_and_its_archive_is_whole(
    fake_qmp: FakeQmp, served: ServedVm, command: Run
) -> None:
    directory = fake_qmp.directory
    sockets = ("--qmp", served.qmp_path, "--agent", served.agent_path, "--name", "web")
    state = ("--state-dir", directory / "state")
    done = command(*sockets, *state, "--vmid", 4711, "--dumpdir", directory)
    assert done.code == 0, done.err
    assert "VM Name: web" in done.err
    assert "issuing guest-agent 'fs-thaw' command" in done.err
    [path] = directory.glob("vzdump-qemu-4711-*.vma")
    shown = command("extract", path, directory / "out")
    assert shown.code == 0, shown.err
    assert (directory / "out/disk-drive-scsi0.raw").read_bytes() == b"disk" * (1 << 18)
    assert "agent: 1" in (directory / "out/qemu-server.conf").read_text()
    assert not list(directory.rglob("*.journal")) and not list(directory.rglob("*fleece*"))
    assert (directory / "state/log/qemu-4711.log").exists()
    nothing = command("recover", "--qmp", served.qmp_path, *state)
    assert nothing.out == "nothing to recover\n"


@pytest.mark.slow
async def test_vm_is_backed_up_from_python(fake_qmp: FakeQmp, served: ServedVm) -> None:
    directory = fake_qmp.directory
    options = SocketVmOptions(qmp_socket=served.qmp_path, state_directory=str(directory / "s"))
    target = TargetOptions(dump_directory=str(directory))
    async with api.open_socket_vm(options) as node:
        result = await api.backup(node, node.vmid, BackupOptions(target=target))
    assert result.error is None
    assert Path(result.archive_path).parent == directory


async def test_missing_socket_is_raised_to_python(tmp_path: Path) -> None:
    options = SocketVmOptions(qmp_socket="/nope", state_directory=str(tmp_path))
    target = TargetOptions(dump_directory=str(tmp_path))
    async with api.open_socket_vm(options) as node:
        with pytest.raises(ConfigError, match="there is no QMP socket '/nope'"):
            await api.backup(node, node.vmid, BackupOptions(target=target))


def test_missing_socket_ends_the_job_at_once(tmp_path: Path, command: Run) -> None:
    done = command("--qmp", "/nope", "--dumpdir", tmp_path, "--state-dir", tmp_path)
    assert done.code == 255
    assert done.err.splitlines()[-1] == (
        "TASK ERROR: there is no QMP socket '/nope' - No such file or directory"
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--qmp", "/s", "100"), "qmp: one VM, known by its socket"),
        (("--qmp", "/s", "--all"), "all: option conflicts with option 'qmp'"),
        (("--qmp", "/s", "--storage", "local"), "storage: option conflicts with option 'qmp'"),
        (("--qmp", "/s", "--fleecing", "1"), "fleecing: option conflicts with option 'qmp'"),
        (("100", "--name", "web"), "name: needs option 'qmp'"),
        (("100", "--exclude-disk", "scsi0"), "exclude-disk: needs option 'qmp'"),
        (("recover", "--agent", "/a"), "agent: needs option 'qmp'"),
        (("recover", "--qmp", "/s", "--root", "/"), "qmp: option conflicts with option 'root'"),
    ],
)
def test_words_that_do_not_go_together_are_refused(
    words: tuple[str, ...], text: str, command: Run
) -> None:
    done = command(*words)
    assert done.code == 2
    assert text in done.err


DIRECTORY = TargetOptions(dump_directory="/d")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (BackupOptions(target=DIRECTORY, mode=BackupMode.STOP), "cannot be stopped"),
        (BackupOptions(), "it was not said where the archive goes"),
        (
            BackupOptions(target=DIRECTORY, data_path=DataPathChoice.NATIVE),
            "has no data path 'native'",
        ),
        (
            BackupOptions(target=DIRECTORY, fleecing=FleecingOptions(storage_id="fast")),
            "there is no storage 'fast' without a node",
        ),
    ],
)
def test_what_a_monitor_cannot_do_is_refused_by_name(
    options: BackupOptions, text: str, tmp_path: Path
) -> None:
    node = api.open_socket_vm(SocketVmOptions(qmp_socket="/s", state_directory=str(tmp_path)))
    with pytest.raises(ConfigError, match=text):
        fit_options(node, options)


def test_data_path_of_a_vm_of_sockets_is_always_pull(tmp_path: Path) -> None:
    node = api.open_socket_vm(SocketVmOptions(qmp_socket="/s", state_directory=str(tmp_path)))
    fitted = fit_options(node, BackupOptions(target=DIRECTORY))
    assert fitted.data_path is DataPathChoice.PULL
    assert fitted.log_directory == f"{tmp_path}/log"
