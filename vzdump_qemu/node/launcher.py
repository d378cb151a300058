"""Starting and stopping the QEMU of a folder node's VM: the `Power` port without ``qm``.

Owns the process from its start to the last socket file; what the machine is made of comes from
`qemu.command_line` through a callable. No process is left half started, no zombie, no stale
socket. Source: host behaviour, sections 7.3 and 7.4 (the texts are those of the platform).
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass

from vzdump_qemu.errors import (
    AgentCommandError,
    AgentTimeout,
    AgentUnreachable,
    PowerError,
    QmpClosed,
    QmpError,
    QmpTimeout,
)
from vzdump_qemu.node.layout import NodeLayout
from vzdump_qemu.node.locks import hold_vm_flock
from vzdump_qemu.node.processes import ProcessHandle, ProcessTable
from vzdump_qemu.node.resuming import resume_from
from vzdump_qemu.ports import Agent, Qmp
from vzdump_qemu.qemu.command_line import MachineSpec, RuntimePaths, build_command_line
from vzdump_qemu.qemu.timeouts import command_timeout_s
from vzdump_qemu.qemu.unix_socket import SOCKET_PATH_BYTES_MAX

CONNECT_TIMEOUT_S = 10.0
START_TIMEOUT_MIN_S = 30.0
QUIT_TIMEOUT_S = 60.0
TERM_TIMEOUT_S = 10.0
KILL_TIMEOUT_S = 10.0
_HARD_SIGNALS = ((signal.SIGTERM, TERM_TIMEOUT_S), (signal.SIGKILL, KILL_TIMEOUT_S))
# `query-status` in a resume.
_STATUS_TIMEOUT_S = 60.0
_AGENT_PROBE_TIMEOUT_S = 3.0
_POLL_INTERVAL_S = 0.25
_STDERR_BYTES_MAX = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherConnections:
    """How the launcher talks to the VM it manages."""

    connect_qmp: Callable[[float], AbstractAsyncContextManager[Qmp]]
    connect_agent: Callable[[float], AbstractAsyncContextManager[Agent]]


class QemuLauncher:
    """`ports.Power` for one VM of a folder node.

    Args:
        binary: program path of QEMU or of a stand-in.
        read_spec: the machine as its configuration describes it now. Raises ConfigError.
    """

    def __init__(
        self,
        layout: NodeLayout,
        vmid: int,
        *,
        binary: str,
        accelerator: str,
        table: ProcessTable,
        read_spec: Callable[[], Awaitable[MachineSpec]],
        connections: LauncherConnections,
    ) -> None:
        self._layout = layout
        self._vmid = vmid
        self._binary = binary
        self._accelerator = accelerator
        self._table = table
        self._read_spec = read_spec
        self._connections = connections

    async def start_paused(self) -> Sequence[str]:
        """See `ports.Power.start_paused`; templates are allowed."""
        async with hold_vm_flock(self._layout.vm_lock(self._vmid)):
            return await self._start(await self._read_spec(), paused=True)

    async def start(self) -> Sequence[str]:
        """See `ports.Power.start`."""
        spec = await self._read_spec()
        if spec.is_template:
            raise PowerError("you can't start a vm if it's a template")
        async with hold_vm_flock(self._layout.vm_lock(self._vmid)):
            return await self._start(spec, paused=False)

    async def shut_down(self, *, timeout_s: float) -> Sequence[str]:
        """See `ports.Power.shut_down`: by the agent if it answers, else by the power button."""
        if self._table.find_qemu(self._pid_file) is None:
            return ()
        if await self._run_state() in ("paused", "prelaunch"):
            raise PowerError("VM is paused - cannot shutdown")
        problems: list[str] = []
        try:
            async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
                # The agent need not answer at all: the guest's end is what counts.
                order = group.create_task(self._order_power_off(problems))
                await self._wait_for_power_off()
                order.cancel()
        except TimeoutError as error:
            raise PowerError(
                "VM quit/powerdown failed - got timeout", hint=" ".join(problems)
            ) from error
        return await self.stop()

    async def stop(self) -> Sequence[str]:
        """See `ports.Power.stop`."""
        lines: list[str] = []
        async with hold_vm_flock(self._layout.vm_lock(self._vmid)):
            handle = ProcessHandle.open(self._table, self._pid_file)
            if handle is not None:
                try:
                    await self._end(handle, lines)
                finally:
                    handle.close()
            self._remove_runtime_files()
        return lines

    async def suspend(self) -> Sequence[str]:
        """See `ports.Power.suspend`."""
        await self._execute("stop")
        return ()

    async def resume(self) -> Sequence[str]:
        """See `ports.Power.resume`."""
        await resume_from(await self._run_state(), self._execute)
        return ()

    @property
    def _pid_file(self) -> str:
        return self._layout.pid_file(self._vmid)

    async def _refuse_second(self) -> None:
        """Two QEMUs on one disk destroy it: one that a killed tool was starting counts too."""
        for _ in range(int(START_TIMEOUT_MIN_S / _POLL_INTERVAL_S)):
            if self._table.find_qemu(self._pid_file) is not None:
                raise PowerError(f"VM {self._vmid} already running")
            if not self._table.is_starting(self._pid_file):
                return
            await asyncio.sleep(_POLL_INTERVAL_S)
        raise PowerError(
            f"VM {self._vmid} is being started by another process",
            hint=f"look for processes with '{self._pid_file}' in their arguments",
        )

    async def _start(self, spec: MachineSpec, *, paused: bool) -> Sequence[str]:
        await self._refuse_second()
        layout, vmid = self._layout, self._vmid
        paths = RuntimePaths(
            qmp=layout.qmp_socket(vmid),
            agent=layout.agent_socket(vmid),
            serial=layout.serial_socket(vmid),
            pid_file=self._pid_file,
        )
        if len(os.fsencode(paths.serial)) > SOCKET_PATH_BYTES_MAX:
            raise PowerError(
                f"start failed: socket path '{paths.serial}' is too long",
                hint="put the lab into a directory with a shorter path",
            )
        argv = build_command_line(
            self._binary, spec, paths, paused=paused, accelerator=self._accelerator
        )
        os.makedirs(layout.runtime_directory, exist_ok=True)
        self._remove_runtime_files()
        try:
            return await self._launch(argv, max(START_TIMEOUT_MIN_S, spec.memory_mib / 1024))
        except BaseException:
            # A start that failed late, or was cancelled, may have left its daemon behind.
            await asyncio.shield(self._clear_failed_start())
            raise

    async def _launch(self, argv: Sequence[str], timeout_s: float) -> Sequence[str]:
        # A file, not a pipe: a daemon that keeps its standard error open must not hold us up.
        with tempfile.TemporaryFile() as output:
            try:
                process = await asyncio.create_subprocess_exec(
                    *argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            except OSError as error:
                raise PowerError(f"start failed: {argv[0]}: {error.strerror}") from error
            try:
                async with asyncio.timeout(timeout_s):
                    status = await process.wait()
            except TimeoutError as error:
                raise PowerError("start failed: got timeout") from error
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            output.seek(0)
            text = output.read(_STDERR_BYTES_MAX).decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        if status != 0:
            reason = lines[-1] if lines else f"QEMU exited with code {status}"
            raise PowerError(f"start failed: {reason}")
        if self._table.find_qemu(self._pid_file) is None:
            raise PowerError("start failed: QEMU ended right after its start")
        return lines

    async def _clear_failed_start(self) -> None:
        handle = ProcessHandle.open(self._table, self._pid_file)
        if handle is not None:
            try:
                handle.send_signal(signal.SIGKILL)
                await handle.wait(KILL_TIMEOUT_S)
            finally:
                handle.close()
        self._remove_runtime_files()

    async def _end(self, handle: ProcessHandle, lines: list[str]) -> None:
        try:
            async with self._connections.connect_qmp(CONNECT_TIMEOUT_S) as qmp:
                # QEMU may close the connection before it has answered.
                with suppress(QmpClosed):
                    await qmp.execute("quit", timeout_s=command_timeout_s("quit"))
            if await handle.wait(QUIT_TIMEOUT_S):
                return
        except QmpError as error:
            lines.append(f"VM quit/powerdown failed - {error}")
        for number, timeout_s in _HARD_SIGNALS:
            lines.append(f"VM still running - terminating now with {number.name}")
            handle.send_signal(number)
            if await handle.wait(timeout_s):
                return
        raise PowerError(f"VM {self._vmid} still running after SIGKILL")

    async def _order_power_off(self, problems: list[str]) -> None:
        if await self._shut_down_by_agent():
            return
        try:
            await self._execute("system_powerdown")
        except PowerError as error:
            problems.append(error.message)

    async def _shut_down_by_agent(self) -> bool:
        """Whether the agent took the order."""
        if not os.path.exists(self._layout.agent_socket(self._vmid)):
            return False
        try:
            async with self._connections.connect_agent(_AGENT_PROBE_TIMEOUT_S) as agent:
                with suppress(AgentTimeout):
                    await agent.execute(
                        "guest-shutdown", timeout_s=command_timeout_s("guest-shutdown")
                    )
        except (AgentUnreachable, AgentCommandError):
            return False
        return True

    async def _wait_for_power_off(self) -> None:
        """Until the process ended, or keeps a powered-off guest because of -no-shutdown."""
        while self._table.find_qemu(self._pid_file) is not None:
            try:
                if await self._run_state() == "shutdown":
                    return
            except (PowerError, QmpTimeout):
                pass
            await asyncio.sleep(_POLL_INTERVAL_S)

    async def _run_state(self) -> str:
        reply = await self._execute("query-status", timeout_s=_STATUS_TIMEOUT_S)
        return str(reply.get("status", "")) if isinstance(reply, dict) else ""

    async def _execute(self, command: str, *, timeout_s: float | None = None) -> object:
        if self._table.find_qemu(self._pid_file) is None:
            raise PowerError(f"VM {self._vmid} not running")
        try:
            async with self._connections.connect_qmp(CONNECT_TIMEOUT_S) as qmp:
                reply: object = await qmp.execute(
                    command, timeout_s=timeout_s or command_timeout_s(command)
                )
                return reply
        except QmpError as error:
            raise PowerError(str(error), hint=error.hint) from error

    def _remove_runtime_files(self) -> None:
        for path in self._layout.runtime_files(self._vmid):
            with suppress(FileNotFoundError):
                os.unlink(path)
