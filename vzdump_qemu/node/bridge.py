"""Client of the child that asks the platform's own Perl library.

Owns the child: its start at the first call, one request at a time with a limit, and its end
whenever it cannot be trusted any more. What the methods mean is told in ``pve_bridge.pl``.
Source: architecture, section 5; host behaviour, sections 5.3 to 5.5 and 7.3.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from typing import Any

from vzdump_qemu.errors import BackupError

# The largest answer is a handful of volumes.
_LINE_BYTES_MAX = 4 * 1024 * 1024
_END_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeReply:
    """The result of one call, and what the library printed meanwhile."""

    result: Any
    lines: Sequence[str]


class PveBridge:
    """The child, started when it is first needed.

    Args:
        perl: program and options that run a Perl script.
        script: path of the script; the one of this package if empty.
    """

    def __init__(self, perl: Sequence[str] = ("perl",), *, script: str = "") -> None:
        self._perl = tuple(perl)
        self._script = script or str(resources.files("vzdump_qemu.node") / "pve_bridge.pl")
        self._process: asyncio.subprocess.Process | None = None
        self._call_count = 0
        self._turn = asyncio.Lock()

    async def call(
        self,
        method: str,
        params: Mapping[str, Any],
        *,
        timeout_s: float,
        error_type: type[BackupError],
    ) -> BridgeReply:
        """Call one method of the script.

        Raises:
            error_type: the library died with that text; or the child did not answer in time or
                at all, and was ended: then the call may have been carried out.
        Cancelled: the child is ended; the call may have been carried out.
        """
        async with self._turn:
            self._call_count += 1
            request = {"id": self._call_count, "method": method, "params": dict(params)}
            try:
                async with asyncio.timeout(timeout_s):
                    reply = await self._round_trip(request)
            except TimeoutError as error:
                await self._end()
                raise error_type(f"{method} failed - got timeout") from error
            except (OSError, ValueError, EOFError) as error:
                await self._end()
                raise error_type(f"{method} failed - {error or 'child ended'}") from error
            except BaseException:
                await self._end()
                raise
        if reply.get("error") is not None:
            raise error_type(" ".join(str(reply["error"]).split()))
        lines = [str(line) for line in reply.get("output") or []]
        return BridgeReply(result=reply.get("result"), lines=lines)

    async def close(self) -> None:
        """End the child; idempotent."""
        await self._end()

    async def _round_trip(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        process = self._process or await self._start()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        await process.stdin.drain()
        line = await process.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the Perl child ended without an answer")
        reply = json.loads(line)
        if not isinstance(reply, dict) or reply.get("id") != request["id"]:
            raise ValueError("the Perl child answered another request")
        return reply

    async def _start(self) -> asyncio.subprocess.Process:
        self._process = await asyncio.create_subprocess_exec(
            *self._perl,
            self._script,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES_MAX,
            # A terminal's Ctrl-C must not end a start or a stop half way.
            start_new_session=True,
        )
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            if not self._turn.locked():
                # Nothing is under way: the script ends by itself at the end of its input.
                with suppress(TimeoutError):
                    async with asyncio.timeout(_END_TIMEOUT_S):
                        await process.wait()
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
