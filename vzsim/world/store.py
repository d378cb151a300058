"""Archives on their way, simulated: the `ArchiveStore` and `VmaIntake` ports on simulated files.

The stream is parsed as the real intake parses it; the compressor is a filter that changes nothing
but can die, fail or stall. What goes wrong behind the pipe is kept, and the pipe is drained.
"""

from __future__ import annotations

import asyncio
import posixpath
from dataclasses import dataclass

from vzdump_qemu.errors import BackupError, CompressorError, TargetError, VmaError
from vzdump_qemu.formats.vma import VmaStreamCheck
from vzdump_qemu.ports import ArchiveTarget, VmaExpectation, VmaProof
from vzsim.world.files import SimulatedFiles
from vzsim.world.pipes import CAPACITY_BYTES, Descriptors, SimulatedPipe

READ_BYTES = 1 << 20
_TAIL_BYTES = 512


@dataclass(slots=True, kw_only=True)
class CompressorRules:
    """How the compressor behaves.

    Attributes:
        exit_status: at the end of its input; negative for a signal.
        dies_at_bytes: it is gone after so much input, with `exit_status`.
        stall_at_bytes, stall_s: it takes nothing for that long.
        bytes_per_s: how fast it takes its input; 0 for at once.
        missing: the program is not installed.
    """

    exit_status: int = 0
    dies_at_bytes: int | None = None
    stall_at_bytes: int | None = None
    stall_s: float = 0.0
    bytes_per_s: float = 0.0
    missing: bool = False


class SimulatedStore:
    """The `ArchiveStore` port on simulated files."""

    def __init__(self, files: SimulatedFiles, descriptors: Descriptors) -> None:
        self._files = files
        self._descriptors = descriptors
        self.compressor = CompressorRules()
        self.stdout = bytearray()
        self.pipe_bytes = CAPACITY_BYTES
        self.live_compressor_count = 0

    @property
    def files(self) -> SimulatedFiles:
        return self._files

    @property
    def descriptors(self) -> Descriptors:
        return self._descriptors

    async def open_intake(self, target: ArchiveTarget) -> SimulatedIntake:
        """Start a stream; nothing is left behind if it cannot be started."""
        if target.compressor and self.compressor.missing:
            raise CompressorError(f"unable to find command '{target.compressor[0]}'")
        if target.temp_path:
            try:
                if target.temp_path in self._files.files:
                    self._files.unlink(target.temp_path)
                self._files.create(target.temp_path)
            except OSError as error:
                raise TargetError(f"{target.temp_path}: {error.strerror}") from error
        return SimulatedIntake(self, target)

    async def create_directory(self, path: str) -> None:
        """One level, empty, replacing a left-over."""
        try:
            self._files.remove_tree(path)
            self._files.create_directory(path)
        except OSError as error:
            raise TargetError(f"unable to create temporary directory '{path}'") from error

    async def write_file(self, path: str, data: bytes) -> None:
        """A new small file."""
        try:
            self._files.create(path)
            self._files.append(path, data)
        except OSError as error:
            raise TargetError(f"{path}: {error.strerror}") from error

    async def remove_tree(self, path: str) -> None:
        """Remove a directory with all it holds."""
        try:
            self._files.remove_tree(path)
            self._files.fsync_directory(posixpath.dirname(path))
        except OSError as error:
            raise TargetError(f"{path}: {error.strerror}") from error

    async def remove_file(self, path: str) -> None:
        """Remove a file; a missing one is no error."""
        try:
            if path in self._files.files:
                self._files.unlink(path)
            self._files.fsync_directory(posixpath.dirname(path))
        except OSError as error:
            raise TargetError(f"{path}: {error.strerror}") from error

    async def exists(self, path: str) -> bool:
        """Whether a file or directory of that name is there."""
        return path in self._files.directories or path in self._files.files

    async def list_names(self, path: str) -> list[str]:
        """Names of the files and directories in a directory."""
        try:
            return self._files.list_names(path)
        except OSError as error:
            raise TargetError(f"{path}: {error.strerror}") from error


class SimulatedIntake:
    """The `VmaIntake` port: pipe, parser, compressor, temporary file."""

    def __init__(self, store: SimulatedStore, target: ArchiveTarget) -> None:
        self._store = store
        self._target = target
        self._pipe = SimulatedPipe(store.pipe_bytes)
        self._write_fd: int | None = store.descriptors.open(self._pipe)
        self._failure: BackupError | None = None
        self._check = VmaStreamCheck()
        self._pending = bytearray()
        self._skip_bytes = 0
        self._passed_bytes = 0
        self._compressing = bool(target.compressor)
        self._named = self._published = self._finished = False
        self._draining = asyncio.Event()
        if self._compressing:
            store.live_compressor_count += 1
        self._relay = asyncio.ensure_future(self._run())

    @property
    def write_fd(self) -> int:
        """The end to hand to QEMU."""
        assert self._write_fd is not None
        return self._write_fd

    async def write(self, data: bytes) -> None:
        """Put bytes into the pipe, waiting while it is full."""
        sink = self._store.descriptors.sink(self.write_fd)
        view = memoryview(data)
        while view:
            taken = sink.write(view)
            view = view[taken:]
            if not taken:
                room = asyncio.Event()
                sink.when_writable(room.set)
                await room.wait()

    def close_write_end(self) -> None:
        """Close our own end. Idempotent."""
        if self._write_fd is not None:
            self._store.descriptors.close(self._write_fd)
            self._write_fd = None

    def failure(self) -> BackupError | None:
        """The first thing that went wrong behind the pipe."""
        return self._failure

    async def finish(self, expectation: VmaExpectation, *, timeout_s: float) -> VmaProof:
        """Wait for the end of stream and compressor; sync the temporary file."""
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._relay)
        except TimeoutError as error:
            raise TargetError(f"the archive did not end within {timeout_s:g} seconds") from error
        if self._failure is not None:
            raise self._failure
        header = self._check.header
        assert header is not None
        if expectation.uuid and header.uuid.hex() != expectation.uuid.replace("-", ""):
            raise VmaError("the stream is not the one of our job: foreign uuid")
        found = tuple(sorted(device.name for device in header.devices))
        if found != tuple(sorted(expectation.device_ids)):
            raise VmaError(f"the stream holds other devices than asked for: {', '.join(found)}")
        if self._target.temp_path:
            try:
                self._store.files.fsync(self._target.temp_path)
            except OSError as error:
                raise TargetError(f"{self._target.temp_path}: {error.strerror}") from error
        self._finished = True
        tallies = self._check.tallies()
        return VmaProof(
            stream_bytes=self._check.stream_bytes,
            vma_cluster_count=sum(tally.vma_cluster_count for tally in tallies),
            stored_bytes=sum(tally.stored_block_count for tally in tallies) * 4096,
            device_ids=tuple(device.name for device in header.devices),
        )

    async def publish(self) -> int:
        """Rename and sync the directory; return the size."""
        assert self._finished
        target = self._target
        if not target.final_path:
            return len(self._store.stdout)
        try:
            self._store.files.rename(target.temp_path, target.final_path)
            self._named = True
            self._store.files.fsync_directory(posixpath.dirname(target.final_path))
            self._published = True
        except OSError as error:
            raise TargetError(
                f"unable to rename '{target.temp_path}' to '{target.final_path}'"
            ) from error
        return len(self._store.files.files[target.final_path].content)

    def drain(self) -> None:
        """Only read on; whatever stalls behind the pipe stalls no more."""
        self.close_write_end()
        self._draining.set()

    async def discard(self) -> None:
        """Drain what still comes, end the compressor, remove the temporary file."""
        if self._published:
            return
        self.drain()
        try:
            async with asyncio.timeout(30.0):
                # Not awaited itself: a second discard finds it cancelled.
                await asyncio.wait({self._relay})
        except TimeoutError:
            self._pipe.close_reader()
            self._relay.cancel()
        self._end_compressor()
        try:
            self._remove_names()
        except OSError as error:
            name = self._target.final_path or self._target.temp_path
            raise TargetError(f"unable to remove '{name}' - {error.strerror}") from error

    def _remove_names(self) -> None:
        if self._named:
            # Not known to be durable, so it must not look like an archive.
            self._store.files.unlink(self._target.final_path)
            self._named = False
        temp_path = self._target.temp_path
        if temp_path and temp_path in self._store.files.files:
            self._store.files.unlink(temp_path)
        if temp_path:
            self._store.files.fsync_directory(posixpath.dirname(temp_path))

    def abandon(self) -> None:
        """The process that held us is gone: nothing is removed, and its guardian reads on.

        The guardian has a copy of the read end, so that QEMU finds neither a broken nor a stuck
        pipe until its job is cancelled.
        """
        self.drain()
        self._end_compressor()

    async def _run(self) -> None:
        while data := await self._pipe.read(READ_BYTES):
            if self._failure is None and not self._draining.is_set():
                await self._take(data)
        if self._failure is None:
            try:
                self._check.finish(
                    partial_bytes=len(self._pending), missing_data_bytes=self._skip_bytes
                )
            except VmaError as error:
                self._failure = error
        if self._failure is None and self._compressing:
            self._judge_compressor()
        self._end_compressor()

    async def _take(self, data: bytes) -> None:
        rules = self._store.compressor
        try:
            self._parse(data)
        except VmaError as error:
            self._failure = error
            return
        before, self._passed_bytes = self._passed_bytes, self._passed_bytes + len(data)
        if self._compressing:
            stall_at = rules.stall_at_bytes
            if stall_at is not None and before <= stall_at < self._passed_bytes:
                await self._stall(rules.stall_s)
            if rules.bytes_per_s:
                await self._stall(len(data) / rules.bytes_per_s)
            if rules.dies_at_bytes is not None and self._passed_bytes > rules.dies_at_bytes:
                self._judge_compressor()
                return
        try:
            if self._target.temp_path:
                self._store.files.append(self._target.temp_path, data)
            else:
                self._store.stdout += data
        except OSError as error:
            self._failure = TargetError(f"{self._target.temp_path}: {error.strerror}")

    async def _stall(self, stall_s: float) -> None:
        try:
            async with asyncio.timeout(stall_s):
                await self._draining.wait()
        except TimeoutError:
            pass

    def _parse(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if self._skip_bytes:
                passed = min(self._skip_bytes, len(view))
                self._skip_bytes -= passed
                view = view[passed:]
                continue
            wanted = self._check.needed_bytes - len(self._pending)
            self._pending += view[:wanted]
            view = view[wanted:]
            if len(self._pending) == self._check.needed_bytes:
                raw, self._pending = bytes(self._pending), bytearray()
                self._skip_bytes = self._check.give(raw)

    def _judge_compressor(self) -> None:
        status = self._store.compressor.exit_status
        if status and self._target.temp_path:
            # What it had not written yet.
            del self._store.files.files[self._target.temp_path].content[-_TAIL_BYTES:]
        if status == 0:
            return
        text = f"{' '.join(self._target.compressor)} failed - wrong exit status {max(status, 0)}"
        self._failure = CompressorError(text + (f" (signal {-status})" if status < 0 else ""))

    def _end_compressor(self) -> None:
        if self._compressing:
            self._compressing = False
            self._store.live_compressor_count -= 1
