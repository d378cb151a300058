"""Threads that pass a VMA stream on, and prove it while it passes.

Owns: the read end of QEMU's pipe (`VmaRelay`) and the last step into a file (`FileWriter`).
Headers are read and checked by `vzdump_qemu.formats.vma`; data goes from pipe to pipe and from
pipe to file inside the kernel (splice) where it can. Leaves to `vzdump_qemu.stores.vma_intake`
what a failure means and when to stop. Follows pve-qemu-backup-qmp 3, 5.1, 5.2, 5.4.

The rule above all others: as long as QEMU holds the write end, somebody reads. A reader that
stops makes guest writes hang, one that goes away makes them fail, and a stalled one freezes
every monitor of that QEMU as soon as somebody cancels. Hence the relay never blocks in a write:
even a plain file is behind a pipe and a thread of its own, so a dead network mount holds up
that thread and not the draining.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import select
import stat
import threading
from concurrent.futures import Future
from contextlib import suppress

from vzdump_qemu.errors import VmaError
from vzdump_qemu.formats.vma.layout import VMA_BLOCK_BYTES
from vzdump_qemu.ports import VmaProof
from vzdump_qemu.stores.system import start_thread

# The largest that an unprivileged process may ask for by default (fs.pipe-max-size).
PIPE_BYTES = 1024 * 1024
_READ_BYTES = 1024 * 1024
_AHEAD_BYTES = 64 * 1024
_SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


def open_pipe() -> tuple[int, int]:
    """Make a close-on-exec pipe of `PIPE_BYTES` where allowed: (read end, write end)."""
    read_fd, write_fd = os.pipe()
    # Over the user's share of pipe pages a smaller pipe is slower and just as right.
    with suppress(OSError):
        fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return read_fd, write_fd


class _Level(enum.IntEnum):
    RUN = 0
    DRAIN = 1
    STOP = 2


class _Stopped(Exception):
    """The brake was pulled."""


class _Brake:
    """Reaches a thread that waits in poll. The level only ever rises."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self.level = _Level.RUN
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def pull(self, level: _Level) -> None:
        with self._lock:
            self.level = max(self.level, level)
            if not self._closed:
                os.eventfd_write(self.fd, 1)

    def clear_wake(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self.fd)


class _Channel:
    """Moves bytes from one descriptor to another and can be stopped while it waits.

    The source is a pipe of ours and does not block. The sink is a pipe of ours that does not
    block, or a foreign descriptor whose flags are not ours to change.
    """

    def __init__(self, *, source_fd: int, sink_fd: int, brake: _Brake, stop_at: _Level) -> None:
        os.set_blocking(source_fd, False)
        self._source_fd = source_fd
        self._sink_fd = sink_fd
        self._brake = brake
        self._stop_at = stop_at
        self._can_splice = True
        # A foreign pipe or terminal takes this much without blocking once poll calls it ready.
        is_file = stat.S_ISREG(os.fstat(sink_fd).st_mode)
        self._own_sink = not os.get_blocking(sink_fd)
        self._write_bytes = _READ_BYTES if is_file or self._own_sink else select.PIPE_BUF

    def read_exactly(self, count: int) -> bytes:
        """Read that many bytes; fewer only if the stream ends."""
        data = bytearray()
        while len(data) < count:
            piece = self.read(count - len(data))
            if not piece:
                break
            data += piece
        return bytes(data)

    def write_all(self, data: bytes) -> None:
        view = memoryview(data)
        # Headers of empty extents come by the thousand: a pipe of ours is asked when it is full.
        must_wait = not self._own_sink
        while view:
            if must_wait:
                self._wait(self._sink_fd, select.POLLOUT)
            must_wait = True
            with suppress(BlockingIOError):
                view = view[os.write(self._sink_fd, view[: self._write_bytes]) :]

    def move(self, limit: int) -> int:
        """Move up to that many bytes; 0 if the stream has ended."""
        while self._can_splice:
            self._check_brake()
            try:
                return os.splice(self._source_fd, self._sink_fd, limit, flags=_SPLICE_FLAGS)
            except BlockingIOError:
                # It does not say which side: the source first, what is there then stays there.
                self._wait(self._source_fd, select.POLLIN)
                self._wait(self._sink_fd, select.POLLOUT)
            except OSError as error:
                # Files in append mode, terminals and some file systems cannot be spliced to.
                if error.errno not in (errno.EINVAL, errno.ENOSYS):
                    raise
                self._can_splice = False
        data = self.read(min(limit, _READ_BYTES))
        self.write_all(data)
        return len(data)

    def read(self, limit: int) -> bytes:
        """Read what is there, up to that many bytes; nothing only if the stream has ended."""
        while True:
            self._check_brake()
            try:
                return os.read(self._source_fd, limit)
            except BlockingIOError:
                self._wait(self._source_fd, select.POLLIN)

    def _check_brake(self) -> None:
        if self._brake.level >= self._stop_at:
            raise _Stopped

    def _wait(self, fd: int, events: int) -> None:
        poll = select.poll()
        # Asked for nothing, the sink still reports that its reader has gone, and that early:
        # QEMU writes nothing before the first extent is complete.
        poll.register(self._sink_fd, 0)
        poll.register(fd, events)
        poll.register(self._brake.fd, select.POLLIN)
        while True:
            self._check_brake()
            ready = dict(poll.poll())
            if self._brake.fd in ready:
                self._brake.clear_wake()
            if fd in ready:
                return
            if ready.get(self._sink_fd, 0) & select.POLLERR:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class VmaRelay:
    """Reads a VMA stream, checks it and passes it on; on any failure it drains.

    Args:
        source_fd: read end of the stream's pipe; owned from now on.
        sink_fd: write end of the next pipe; owned from now on, closed at the end of the stream
            or at the first failure.

    Attributes:
        ended: done when both descriptors are closed. Holds an exception only for a bug of ours.
        stream_error: what is wrong with the stream, or None.
        sink_error: what the sink answered, or None. At most one of the two is set.
        proof: set once the stream was seen whole and all of it was passed on.
    """

    def __init__(self, *, source_fd: int, sink_fd: int) -> None:
        from vzdump_qemu.formats.vma import VmaStreamCheck

        self.check = VmaStreamCheck()
        self.stream_error: VmaError | None = None
        self.sink_error: OSError | None = None
        self.proof: VmaProof | None = None
        self._source_fd = source_fd
        self._sink_fd = sink_fd
        self._brake = _Brake()
        os.set_blocking(sink_fd, False)
        self._channel = _Channel(
            source_fd=source_fd, sink_fd=sink_fd, brake=self._brake, stop_at=_Level.DRAIN
        )
        self.ended: Future[None] = start_thread(self._run, name="vma-relay")

    def drain(self) -> None:
        """Pass nothing on any more, close the sink, and read on to the end of the stream."""
        self._brake.pull(_Level.DRAIN)

    def stop(self) -> None:
        """Close the read end too: a writer that is still there sees a broken pipe."""
        self._brake.pull(_Level.STOP)

    def _run(self) -> None:
        # Nested so that even a bug of ours closes the sink first and then drains.
        try:
            try:
                self._pass_on()
            except VmaError as error:
                self.stream_error = error
            except OSError as error:
                self.sink_error = error
            finally:
                os.close(self._sink_fd)
                self._drain()
        except _Stopped:
            pass
        finally:
            os.close(self._source_fd)
            self._brake.close()

    def _pass_on(self) -> None:
        channel, check = self._channel, self.check
        held, missing_bytes, was_empty = b"", 0, False
        while True:
            # Headers of empty extents come by the thousand: then what is there is taken at once.
            if was_empty:
                raw = channel.read(_AHEAD_BYTES)
            else:
                raw = channel.read_exactly(check.needed_bytes - len(held))
            if not raw:
                check.finish(partial_bytes=len(held))
                break
            raw, at = held + raw, 0
            while (end := at + check.needed_bytes) <= len(raw):
                missing_bytes = check.give(raw[at:end])
                was_empty = not missing_bytes
                at = min(end + missing_bytes, len(raw))
                missing_bytes -= at - end
            channel.write_all(raw[:at])
            held = raw[at:]
            while missing_bytes:
                moved_bytes = channel.move(missing_bytes)
                if not moved_bytes:
                    check.finish(missing_data_bytes=missing_bytes)
                missing_bytes -= moved_bytes
        tallies = check.tallies()
        self.proof = VmaProof(
            stream_bytes=check.stream_bytes,
            vma_cluster_count=sum(tally.vma_cluster_count for tally in tallies),
            stored_bytes=sum(tally.stored_block_count for tally in tallies) * VMA_BLOCK_BYTES,
            device_ids=tuple(tally.device.name for tally in tallies),
        )

    def _drain(self) -> None:
        buffer = bytearray(_READ_BYTES)
        poll = select.poll()
        poll.register(self._source_fd, select.POLLIN)
        poll.register(self._brake.fd, select.POLLIN)
        while self._brake.level < _Level.STOP:
            try:
                if not os.readv(self._source_fd, [buffer]):
                    return
            except BlockingIOError:
                poll.poll()
                self._brake.clear_wake()


class FileWriter:
    """Writes what comes out of a pipe into a file or to standard output.

    Args:
        source_fd: read end of a pipe; owned from now on.
        target_fd: stays the caller's.

    Attributes:
        ended: holds the number of bytes written, or the OSError of the target.
    """

    def __init__(self, *, source_fd: int, target_fd: int) -> None:
        self._source_fd = source_fd
        self._brake = _Brake()
        self._channel = _Channel(
            source_fd=source_fd, sink_fd=target_fd, brake=self._brake, stop_at=_Level.STOP
        )
        self.ended: Future[int] = start_thread(self._run, name="vma-file-writer")

    def stop(self) -> None:
        """Write nothing more. A write that the kernel holds on to ends when it will."""
        self._brake.pull(_Level.STOP)

    def _run(self) -> int:
        written_bytes = 0
        try:
            while moved_bytes := self._channel.move(PIPE_BYTES):
                written_bytes += moved_bytes
        except _Stopped:
            pass
        finally:
            os.close(self._source_fd)
            self._brake.close()
        return written_bytes
