"""The operator's hook script: called around a job and around each run.

Owns the call, its limit, its output and what is known at each moment; arguments, environment and
texts are `plan.hook_script`'s, the order of the phases that of `batch` and `run`. Source: host
behaviour, sections 1.8 and 2.4.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from vzdump_qemu import events
from vzdump_qemu.engine.context import EnginePorts
from vzdump_qemu.errors import BackupError
from vzdump_qemu.events import BackupMode
from vzdump_qemu.plan.hook_script import HookFacts, HookPhase, make_hook_call, render_hook_failure
from vzdump_qemu.plan.options import BackupOptions

# While a guest stands still, or an operator who interrupted the job looks on.
HURRIED_TIMEOUT_S = 300.0
_LINE_COUNT_MAX = 1000


class Hooks:
    """Calls the script with what is known so far; without a script every call does nothing."""

    def __init__(self, ports: EnginePorts, options: BackupOptions, facts: HookFacts) -> None:
        self._ports = ports
        self._options = options.hook
        self._facts = facts
        self._hurries = False

    @property
    def is_wanted(self) -> bool:
        """Whether there is a script at all."""
        return bool(self._options.script)

    @property
    def mode(self) -> BackupMode:
        """As the script is told: the effective one as soon as that is known."""
        return self._facts.mode

    def learn(
        self, *, mode: BackupMode | None = None, vm_name: str = "", dump_directory: str = ""
    ) -> None:
        """Something more is known from now on."""
        facts = self._facts
        self._facts = replace(
            facts,
            mode=mode or facts.mode,
            vm_name=vm_name or facts.vm_name,
            dump_directory=dump_directory or facts.dump_directory,
        )

    def find_vm(self, *, target: str, log_path: str) -> None:
        """The VM of this run exists, and its backup and its log have their names."""
        self._facts = replace(self._facts, vm_type="qemu", target=target, log_path=log_path)

    def hurry(self) -> None:
        """Calls are given little time from now on."""
        self._hurries = True

    async def call(self, phase: HookPhase) -> None:
        """Call the script; what it prints becomes part of the log when it has ended.

        Raises:
            BackupError: it failed, or did not end in time and was ended.
        Cancelled: it was ended.
        """
        if not self.is_wanted:
            return
        call = make_hook_call(self._options.script, phase, self._facts)
        try:
            async with asyncio.timeout(self._timeout_s):
                status, lines = await self._ports.hooks.run(call.argv, environment=call.environment)
        except TimeoutError as error:
            raise BackupError(
                render_hook_failure(call, None), hint="--script-timeout MIN gives it more time"
            ) from error
        if len(lines) > _LINE_COUNT_MAX:
            skipped_count = len(lines) - _LINE_COUNT_MAX
            self._ports.emit(events.OutputSeen(line=f"... {skipped_count} lines left out ..."))
        for line in lines[-_LINE_COUNT_MAX:]:
            self._ports.emit(events.OutputSeen(line=line))
        if status != 0:
            raise BackupError(
                render_hook_failure(call, status), hint=f"run '{call.argv[0]}' by hand to see why"
            )

    async def try_call(self, phase: HookPhase) -> bool:
        """Call the script where its failure changes no outcome: a warning. True if it went well."""
        try:
            await self.call(phase)
        except BackupError as error:
            self._ports.emit(events.Warned(text=str(error)))
            return False
        return True

    @property
    def _timeout_s(self) -> float | None:
        limit_s = self._options.timeout_s or None
        if not self._hurries:
            return limit_s
        return HURRIED_TIMEOUT_S if limit_s is None else min(limit_s, HURRIED_TIMEOUT_S)


def make_job_hooks(ports: EnginePorts, options: BackupOptions) -> Hooks:
    """Those of a whole job, before anything was looked at."""
    target = options.target
    facts = HookFacts(
        storage_id=target.storage_id, dump_directory=target.dump_directory, mode=options.mode
    )
    return Hooks(ports, options, facts)


def make_run_hooks(
    ports: EnginePorts, options: BackupOptions, vmid: int, *, dump_directory: str
) -> Hooks:
    """Those of one run, before it is known that there is such a VM."""
    facts = HookFacts(
        storage_id=options.target.storage_id,
        dump_directory=dump_directory,
        mode=options.mode,
        vmid=vmid,
        vm_type="",
    )
    return Hooks(ports, options, facts)
