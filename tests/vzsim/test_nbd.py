"""Exports of simulated processes, read by real NBD clients over real sockets."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.blocking_client import BlockingClient, open_monitor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed"),
]
_MIB = 1 << 20
_SIZE_BYTES = 4 * _MIB


class _World:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.content = random.Random(1).randbytes(_MIB) + bytes(_SIZE_BYTES - _MIB)
        (root / "disk.raw").write_bytes(self.content)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.clients: list[BlockingClient] = []

    def start(self, module: str, *arguments: str) -> BlockingClient:
        dashes = "--" if "daemon" in module else "-"
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments, f"{dashes}pidfile", "pid"],
            cwd=self.root,
        )
        self.processes.append(process)
        while not (self.root / "pid").exists():
            assert process.poll() is None
        client = open_monitor(self.root / "qmp")
        self.clients.append(client)
        return client

    def url(self, name: str) -> str:
        return f"nbd+unix:///{name}?socket={self.root}/nbd"

    def qemu_img(self, *arguments: str) -> str:
        done = subprocess.run(
            ["qemu-img", *arguments], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def read(self, name: str) -> bytes:
        target = self.root / "read.raw"
        self.qemu_img("convert", "-f", "raw", "-O", "raw", self.url(name), str(target))
        return target.read_bytes()

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for process in self.processes:
            process.terminate()
            process.wait(20)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[_World]:
    made = _World(tmp_path)
    yield made
    made.close()


def test_export_of_fleecing_image_while_guest_writes_is_the_point_in_time(world: _World) -> None:
    root = world.root
    world.qemu_img("create", "-q", "-f", "qcow2", f"{root}/fleece.qcow2", str(_SIZE_BYTES))
    client = world.start(
        "vzsim.qemu_stand_in",
        *("-S", "-vzsim", "dialect=upstream", "-qmp", f"unix:{root}/qmp,server=on,wait=off"),
        *("-blockdev", f"driver=raw,node-name=d0,file.driver=file,file.filename={root}/disk.raw"),
        *("-device", "scsi-hd,drive=d0,id=scsi0"),
    )
    fleece = {"driver": "file", "filename": f"{root}/fleece.qcow2"}
    overlay = {"driver": "qcow2", "node-name": "f0", "file": fleece, "backing": "d0"}
    assert client.ask("blockdev-add", **overlay) == {}
    job = {"device": "d0", "target": "f0", "sync": "none", "job-id": "j0"}
    actions = [
        {"type": "block-dirty-bitmap-add", "data": {"node": "d0", "name": "inc"}},
        {"type": "blockdev-backup", "data": job},
    ]
    assert client.ask("transaction", actions=actions) == {}
    address = {"type": "unix", "data": {"path": f"{root}/nbd"}}
    assert client.ask("nbd-server-start", addr=address) == {}
    bitmap = {"node": "d0", "name": "inc"}
    export = {"type": "nbd", "id": "e", "node-name": "f0", "name": "d", "bitmaps": [bitmap]}
    assert client.ask("block-export-add", **export) == {}
    write = 'qemu-io -d /machine/peripheral/scsi0 "write -P 0x77 1000k 100k"'
    assert client.ask("human-monitor-command", **{"command-line": write}) == ""

    assert world.read("d") == world.content
    now = (root / "disk.raw").read_bytes()
    assert now[1000 * 1024 : 1100 * 1024] == b"\x77" * (100 * 1024)
    assert json.loads(world.qemu_img("info", "--output=json", world.url("d")))["virtual-size"] == (
        _SIZE_BYTES
    )
    held = json.loads(world.qemu_img("map", "--output=json", world.url("d")))
    assert [(each["start"], each["zero"]) for each in held] == [(0, False), (_MIB, True)]
    options = f"driver=nbd,server.type=unix,server.path={root}/nbd,export=d"
    dirty = "x-dirty-bitmap=qemu:dirty-bitmap:inc"
    found = json.loads(world.qemu_img("map", "--output=json", "--image-opts", f"{options},{dirty}"))
    # A client that asks for a bitmap in place of the allocation shows dirty parts as holes.
    assert [(each["start"], each["data"]) for each in found] == [
        (0, True), (15 * 65536, False), (18 * 65536, True),
    ]  # fmt: skip
    assert client.ask("block-export-del", id="e") == {}
    assert client.ask("nbd-server-stop") == {}
    assert client.ask("block-job-cancel", device="j0") == {}
    assert client.ask("blockdev-del", **{"node-name": "f0"}) == {}


def test_storage_daemon_exports_a_qcow2_disk_until_it_quits(world: _World) -> None:
    root = world.root
    image = f"{root}/disk.qcow2"
    world.qemu_img("convert", "-f", "raw", "-O", "qcow2", f"{root}/disk.raw", image)
    client = world.start(
        "vzsim.storage_daemon_stand_in",
        *("--chardev", f"socket,id=mon,path={root}/qmp,server=on,wait=off"),
        *("--monitor", "chardev=mon"),
        *("--blockdev", f"driver=file,node-name=f,filename={image},read-only=on"),
        *("--blockdev", "driver=qcow2,node-name=d,file=f,read-only=on"),
        *("--nbd-server", f"addr.type=unix,addr.path={root}/nbd"),
        *("--export", "type=nbd,id=e,node-name=d,name=d,writable=off"),
    )
    assert world.read("d") == world.content
    assert client.ask("query-status")["class"] == "CommandNotFound"
    assert client.ask("quit") == {}
    assert world.processes[0].wait(20) == 0
    assert not (root / "nbd").exists()


def test_storage_daemon_shows_the_bitmap_stored_in_an_image(world: _World) -> None:
    root = world.root
    image = f"{root}/disk.qcow2"
    world.qemu_img("create", "-q", "-f", "qcow2", image, str(_SIZE_BYTES))
    world.qemu_img("bitmap", "--add", image, "daily")
    write = ["qemu-io", "-f", "qcow2", "-c", "write -P 1 1M 128k", image]
    subprocess.run(write, check=True, capture_output=True, timeout=30)
    client = world.start(
        "vzsim.storage_daemon_stand_in",
        *("--chardev", f"socket,id=mon,path={root}/qmp,server=on,wait=off"),
        *("--monitor", "chardev=mon"),
        *("--blockdev", f"driver=file,node-name=f,filename={image},read-only=on"),
        *("--blockdev", "driver=qcow2,node-name=d,file=f,read-only=on"),
    )
    node = client.ask("query-named-block-nodes")[0]
    assert node["dirty-bitmaps"] == [
        {
            "name": "daily",
            "recording": True,
            "persistent": True,
            "busy": False,
            "granularity": 65536,
            "count": 131072,
        }
    ]
