"""One VMA stream on its way into an archive: pipe, relay, compressor, output.

Owns: putting these together, telling the root cause of a failure, and the bounded end of
everything. Leaves the moving and proving of bytes to `vzdump_qemu.stores.vma_relay`, the
compressor's process to `vzdump_qemu.stores.commands`, the file and its names to
`vzdump_qemu.stores.archive_output`, and the choice of names and programs to
`vzdump_qemu.stores.archive_directory`. Follows host behaviour 1.7 (steps 8, 22, 30) and 1.10
(rows 6, 11, G), and pve-qemu-backup-qmp 3, 5 and 10.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack, suppress
from typing import Any

from vzdump_qemu.errors import CompressorError, InternalError, TargetError, VmaError
from vzdump_qemu.ports import ArchiveTarget, VmaExpectation, VmaProof
from vzdump_qemu.stores.archive_output import ArchiveOutput, TargetFiles, reason_of, target_error
from vzdump_qemu.stores.commands import FilterProcess
from vzdump_qemu.stores.guardian import VmGuardian
from vzdump_qemu.stores.system import run_blocking, start_thread, wait_done
from vzdump_qemu.stores.vma_relay import FileWriter, VmaRelay, open_pipe

# For what ends at once unless the kernel holds on to it (a dead network mount).
_END_GRACE_S = 5.0


async def _writable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(fd)


class RelayedIntake:
    """`vzdump_qemu.ports.VmaIntake` on pipes, threads and a compressor process.

    Constructing it opens files and starts a process: it blocks, do it in a worker thread.

    Args:
        target: names, and the compressor as the operator knows it.
        argv: what is really run as the compressor; empty for none.
        stdout_fd: written to if the target has no final path; stays the caller's.
        discard_timeout_s: how long `discard` waits for the writer to close the stream.
        guardian: holds the read end as well, in case this process is killed.

    Raises:
        TargetError, CompressorError: then nothing is left behind.
    """

    def __init__(
        self,
        target: ArchiveTarget,
        *,
        argv: Sequence[str],
        files: TargetFiles,
        stdout_fd: int,
        discard_timeout_s: float,
        guardian: VmGuardian | None = None,
    ) -> None:
        self._guardian = guardian
        self._discard_timeout_s = discard_timeout_s
        self._command_text = " ".join(target.compressor)
        self._filter: FilterProcess | None = None
        self._writer: FileWriter | None = None
        self._failure: Exception | None = None
        self._proof: VmaProof | None = None
        self._publication: Future[None] | None = None
        self._broken_s = 0.0
        self._size_bytes = 0
        self._released = False
        self._discarded = False
        with ExitStack() as undo:
            self._output = ArchiveOutput(target, files=files, stdout_fd=stdout_fd)
            undo.callback(self._output.remove)
            undo.callback(self._output.close)
            source_fd, self._write_fd = self._open_pipe(undo)
            sink_fd = self._open_stages(argv, undo)
            if guardian is not None:
                guardian.hold(source_fd)
            undo.pop_all()
        self._relay = VmaRelay(source_fd=source_fd, sink_fd=sink_fd)

    @property
    def write_fd(self) -> int:
        """The end to hand to QEMU; -1 after `close_write_end`."""
        return self._write_fd

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Put a part of the stream into the pipe ourselves, where no other writer does.

        Raises:
            VmaError, TargetError: what went wrong behind the pipe so far.
        Cancelled: a part of it may have been written.
        """
        self._raise_failure()
        fd = self._write_fd
        if fd < 0:
            raise InternalError("the write end was closed before a write")
        os.set_blocking(fd, False)
        view = memoryview(data).cast("B")
        while view:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                await _writable(fd)
            except OSError as error:
                raise target_error("unable to write to the archive stream", error) from error

    def close_write_end(self) -> None:
        """Close our copy once QEMU has its own. Idempotent."""
        fd, self._write_fd = self._write_fd, -1
        if fd >= 0:
            os.close(fd)

    def failure(self) -> Exception | None:
        """The first thing that went wrong behind the pipe, as far as it can be told by now.

        The root cause is preferred over the broken pipe that it leaves behind.
        """
        # What our own release breaks is no failure.
        if self._failure is None and not self._released:
            self._failure = self._root_cause()
            return self._failure or self._broken_pipe()
        return self._failure

    async def finish(self, expectation: VmaExpectation, *, timeout_s: float) -> VmaProof:
        """Wait for the end of stream and compressor, hold it against what was expected, sync.

        Raises:
            VmaError, CompressorError, TargetError: as the port says; `discard` is due.
        """
        self._raise_failure()
        self.close_write_end()
        waiting_for = "the end of the archive stream"
        try:
            async with asyncio.timeout(timeout_s):
                await wait_done(self._relay.ended)
                waiting_for = f"'{self._command_text}'"
                if self._filter is not None:
                    await wait_done(self._filter.ended)
                waiting_for = f"writing to '{self._output.text}'"
                if self._writer is not None:
                    await wait_done(self._writer.ended)
                self._raise_failure()
                proof = self._check_expectation(expectation)
                if self._output.is_file:
                    await self._sync(proof)
        except TimeoutError:
            # A broken pipe whose cause hangs is told as what it is.
            self._raise_failure()
            self._failure = TargetError(f"timeout after {timeout_s:g}s waiting for {waiting_for}")
            raise self._failure from None
        except (VmaError, TargetError) as error:
            self._failure = error
            raise
        self._proof = proof
        return proof

    async def publish(self) -> int:
        """Give the archive its final name, durably; return its size in bytes.

        For standard output there is nothing to name: the bytes written are returned.

        Raises:
            TargetError: the name is taken, or the file system refused; no name was given.
        Cancelled: it may be published or not; `discard` waits and finds out.
        """
        if self._proof is None or self._discarded or self._publication is not None:
            raise InternalError("an archive is published once, after it was proved")
        if not self._output.is_file:
            self._publication = start_thread(lambda: None, name="publish")
            assert self._writer is not None
            self._output.close()
            return self._writer.ended.result()
        self._publication = start_thread(self._output.publish, name="publish")
        await wait_done(self._publication)
        error = self._publication.exception()
        if isinstance(error, TargetError):
            self._failure = error
        if error is not None:
            raise error
        self._output.close()
        return self._size_bytes

    async def discard(self) -> None:
        """Drain, end the compressor, remove the temporary file. Idempotent and bounded.

        The relay goes on reading from the first moment, so that a cancellation inside QEMU can
        come before, after or meanwhile. If the writer has not closed the stream in time the
        read end is closed.
        """
        if await self._is_published():
            return
        self.drain()
        await self._wait_up_to(self._relay.ended, self._discard_timeout_s)
        if self._guardian is not None:
            # Its copy would keep the pipe whole for a writer that is to see it broken.
            self._guardian.release()
        self._relay.stop()
        await self._wait_up_to(self._relay.ended, _END_GRACE_S)
        for stage in (self._filter, self._writer):
            if stage is not None:
                await self._wait_up_to(stage.ended, _END_GRACE_S)
        self._output.close()
        if self._output.is_file and not self._discarded:
            removal = start_thread(self._output.remove, name="remove-names")
            await self._wait_up_to(removal, _END_GRACE_S)
            if not removal.done():
                raise TargetError(f"unable to remove '{self._output.text}' - no answer")
            removal.result()
            self._discarded = True

    def drain(self) -> None:
        """Give the archive up at once, and only read on until the writer closes. Idempotent.

        To be called before QEMU is told to cancel: with a stalled target that call would not
        return and every monitor of that QEMU would freeze (failure modes, row 95). `discard`
        does it first of all.
        """
        if not self._released:
            self._failure = self.failure()
            self._released = True
        self.close_write_end()
        self._relay.drain()
        if self._filter is not None:
            self._filter.kill()
        if self._writer is not None:
            self._writer.stop()

    def abandon(self) -> None:
        """End everything at once, for an opening that nobody waits for any more. Blocks."""
        self.drain()
        self._relay.stop()
        ends: list[Future[Any]] = [self._relay.ended]
        ends += [stage.ended for stage in (self._filter, self._writer) if stage is not None]
        # Nobody may write to the number of a descriptor that is ours no longer.
        wait(ends, timeout=_END_GRACE_S)
        self._output.close()
        with suppress(TargetError):
            self._output.remove()

    def _open_pipe(self, undo: ExitStack) -> tuple[int, int]:
        try:
            read_fd, write_fd = open_pipe()
        except OSError as error:
            raise target_error("unable to open a pipe", error) from error
        undo.callback(os.close, read_fd)
        undo.callback(os.close, write_fd)
        return read_fd, write_fd

    def _open_stages(self, argv: Sequence[str], undo: ExitStack) -> int:
        # relay -> [compressor] -> [writer] -> target. A compressor writes a file by itself;
        # standard output gets the writer too, which counts what arrived.
        writer_source_fd = -1
        with ExitStack() as given:
            out_fd = self._output.fd
            if not argv or not self._output.is_file:
                writer_source_fd, out_fd = self._open_pipe(undo)
            sink_fd = out_fd
            if argv:
                filter_source_fd, sink_fd = self._open_pipe(undo)
                try:
                    self._filter = FilterProcess(argv, stdin_fd=filter_source_fd, stdout_fd=out_fd)
                except OSError as error:
                    raise CompressorError(
                        f"unable to start '{self._command_text}' - {reason_of(error)}"
                    ) from error
                # The child has its own copies; ours would keep the pipes from ever ending.
                given.callback(os.close, filter_source_fd)
                if out_fd != self._output.fd:
                    given.callback(os.close, out_fd)
        if writer_source_fd >= 0:
            self._writer = FileWriter(source_fd=writer_source_fd, target_fd=self._output.fd)
        return sink_fd

    def _root_cause(self) -> Exception | None:
        relay = self._relay
        if relay.stream_error is not None:
            return relay.stream_error
        if self._writer is not None and self._writer.ended.done():
            error = self._writer.ended.exception()
            if isinstance(error, OSError):
                return target_error(f"unable to write to '{self._output.text}'", error)
        if self._filter is not None and self._filter.ended.done():
            end = self._filter.ended.result()
            if not end.is_clean:
                signalled = f" (signal {end.signal_number})" if end.signal_number else ""
                said = f": {end.last_words}" if end.last_words else ""
                return CompressorError(
                    f"{self._command_text} failed - wrong exit status {end.status}{signalled}{said}"
                )
            if relay.sink_error is not None:
                return CompressorError(f"{self._command_text} ended before the stream did")
        if relay.ended.done():
            bug = relay.ended.exception()
            return bug if isinstance(bug, Exception) else None
        return None

    def _broken_pipe(self) -> Exception | None:
        error = self._relay.sink_error
        if error is None:
            return None
        if self._filter is not None:
            # It is about to end, most likely, and its exit status says more.
            self._broken_s = self._broken_s or time.monotonic()
            if time.monotonic() - self._broken_s < _END_GRACE_S:
                return None
            return CompressorError(f"{self._command_text} does not read any more")
        return target_error(f"unable to write to '{self._output.text}'", error)

    def _raise_failure(self) -> None:
        failure = self.failure()
        if failure is not None:
            raise failure

    def _check_expectation(self, expectation: VmaExpectation) -> VmaProof:
        header, proof = self._relay.check.header, self._relay.proof
        if header is None or proof is None:
            raise InternalError("a relay ended with neither a proof nor a failure")
        found_uuid = str(uuid.UUID(bytes=header.uuid))
        if expectation.uuid and expectation.uuid != found_uuid:
            raise VmaError(f"got unexpected uuid {found_uuid} instead of {expectation.uuid}")
        if sorted(proof.device_ids) != sorted(expectation.device_ids):
            raise VmaError(
                f"got devices {', '.join(sorted(proof.device_ids)) or 'none'} instead of "
                f"{', '.join(sorted(expectation.device_ids)) or 'none'}"
            )
        return proof

    async def _sync(self, proof: VmaProof) -> None:
        self._size_bytes = await run_blocking(self._output.sync)
        if self._filter is None and self._size_bytes != proof.stream_bytes:
            raise TargetError(
                f"'{self._output.text}' has {self._size_bytes} bytes instead of "
                f"{proof.stream_bytes}"
            )

    async def _is_published(self) -> bool:
        if self._publication is None:
            return False
        # One that nobody waited for: it decides within its time or counts as not done.
        await self._wait_up_to(self._publication, self._discard_timeout_s)
        done = self._publication.done() and self._publication.exception() is None
        if done:
            self._output.close()
        return done

    async def _wait_up_to(self, future: Future[Any], timeout_s: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(wait_done(future), timeout_s)
