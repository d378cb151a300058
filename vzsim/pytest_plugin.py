"""Fixtures for tests of anything that talks to QEMU or a backup server, and virtual time.

Loaded by pytest where `vzsim` is installed. Example, a test of somebody's QMP client that takes a
path to a socket::

    async def test_client_survives_a_slow_monitor(fake_qmp):
        fake_qmp.script("[[command]]\\nname = 'query-status'\\ndelay_s = 0.2\\n")
        async with fake_qmp.serving() as vm:
            client = await MyClient.connect(vm.qmp_path)
            assert await client.status() == "running"

and one of code on the ports of `vzdump_qemu.ports`, in virtual time, with an hour in it::

    def test_hour_of_waiting_costs_nothing(sim):
        async def wait():
            await asyncio.sleep(3600)
        sim.run(wait())
        assert sim.time_s == 3600

and one of a backup client, against a server with TLS on the loopback::

    async def test_client_finds_the_datastore_empty(fake_pbs):
        async with fake_pbs.serving() as server:
            client = await MyClient.connect(server.repository, server.token_secret)
            assert await client.groups() == []
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from vzdump_qemu.errors import InternalError

if TYPE_CHECKING:
    from vzsim.fakepbs import ServedPbs

_T = TypeVar("_T")
_START_S = 10.0
_POLL_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedVm:
    """Sockets of a fake machine that is up."""

    qmp_path: str
    agent_path: str


@dataclass(slots=True)
class FakeQmp:
    """A fake machine behind real UNIX sockets, in a process of its own."""

    directory: Path
    disks: tuple[str, ...] = ("scsi0=1M",)
    dialect: str = "pve"
    _script: str = field(default="")

    def script(self, text: str) -> None:
        """What shall differ from a well-behaved QEMU: TOML, see `vzsim.fakeqmp.script`."""
        self._script = text

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[ServedVm]:
        """Have the machine up until the block ends."""
        vm = self._vm()
        process = await asyncio.create_subprocess_exec(*self._argv(vm))
        try:
            await self._await_sockets(process, vm)
            yield vm
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()

    @contextmanager
    def served(self) -> Iterator[ServedVm]:
        """The same for clients that block."""
        vm = self._vm()
        process = subprocess.Popen(self._argv(vm))
        try:
            deadline_s = time.monotonic() + _START_S
            while not self._is_up(vm):
                if process.poll() is not None or time.monotonic() > deadline_s:
                    raise InternalError(f"the fake machine ended with {process.returncode}")
                time.sleep(_POLL_S)
            yield vm
        finally:
            process.terminate()
            process.wait()

    def _vm(self) -> ServedVm:
        return ServedVm(
            qmp_path=str(self.directory / "qmp.sock"), agent_path=str(self.directory / "qga.sock")
        )

    @staticmethod
    def _is_up(vm: ServedVm) -> bool:
        return Path(vm.qmp_path).exists() and Path(vm.agent_path).exists()

    def _argv(self, vm: ServedVm) -> list[str]:
        argv = [sys.executable, "-m", "vzsim.cli", "serve", "--dialect", self.dialect]
        argv += ["--qmp", vm.qmp_path, "--agent", vm.agent_path]
        for disk in self.disks:
            argv += ["--disk", disk]
        if self._script:
            path = self.directory / "script.toml"
            path.write_text(self._script, encoding="utf-8")
            argv += ["--script", str(path)]
        return argv

    async def _await_sockets(self, process: asyncio.subprocess.Process, vm: ServedVm) -> None:
        async with asyncio.timeout(_START_S):
            while not self._is_up(vm):
                if process.returncode is not None:
                    raise InternalError(f"the fake machine ended with {process.returncode}")
                await asyncio.sleep(_POLL_S)


@dataclass(slots=True)
class PbsFixture:
    """A fake backup server on the loopback, on the loop of the test itself."""

    directory: Path
    _script: str = field(default="")

    def script(self, text: str) -> None:
        """What shall go wrong: TOML, see `vzsim.fakepbs.faults`."""
        self._script = text

    @asynccontextmanager
    async def serving(self, **config: Any) -> AsyncIterator[ServedPbs]:
        """Have the server up until the block ends; its datastore is in `directory`.

        Args:
            config: what differs from `vzsim.fakepbs.PbsConfig`; refusals are not delayed.
        """
        from vzsim.fakepbs import PbsConfig, PbsServeOptions, read_faults, serving

        options = PbsServeOptions(
            directory=self.directory,
            script=read_faults(self._script),
            config=PbsConfig(**{"refusal_delay_s": 0.0, **config}),
        )
        async with serving(options) as served:
            yield served


@dataclass(slots=True)
class Simulation:
    """Virtual time: `run` makes a coroutine's hours pass at once."""

    seed: int = 1
    time_s: float = 0.0

    def run(self, main: Coroutine[Any, Any, _T]) -> _T:
        """Run to the end in virtual time; `time_s` tells how much passed."""
        from vzsim.kernel import Chance, run_simulated

        async def timed() -> _T:
            try:
                return await main
            finally:
                self.time_s = asyncio.get_running_loop().time()

        return run_simulated(timed(), shuffle=Chance(self.seed).stream())


@pytest.fixture
def fake_qmp() -> Iterator[FakeQmp]:
    """A fake QEMU behind sockets; start it with ``async with fake_qmp.serving()``."""
    # Socket paths are short by nature; pytest's own directories are not.
    with tempfile.TemporaryDirectory(prefix="vzsim-") as directory:
        yield FakeQmp(Path(directory))


@pytest.fixture
def fake_agent(fake_qmp: FakeQmp) -> FakeQmp:
    """The same machine, for tests that only want its guest agent (``agent_path``)."""
    return fake_qmp


@pytest.fixture
def fake_pbs(tmp_path: Path) -> PbsFixture:
    """A fake Proxmox Backup Server; start it with ``async with fake_pbs.serving()``."""
    return PbsFixture(tmp_path / "datastores")


@pytest.fixture
def sim() -> Simulation:
    """Virtual time with a seed."""
    return Simulation()


@pytest.fixture
def lab_node(sim: Simulation) -> Any:
    """A simulated node with one running VM, as the ports that a backup tool works on.

    Build it inside the simulation: ``scene = await lab_node()``; see `vzsim.scene.Scene`.
    """
    from vzsim.kernel import SimulatedLoop
    from vzsim.scenario import Scenario
    from vzsim.scene import Scene

    async def build(scenario: Scenario | None = None) -> Scene:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        scene = Scene(scenario or Scenario(name="lab", about="one VM"), sim.seed, loop)
        await scene.begin()
        return scene

    return build
