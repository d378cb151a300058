"""Threads that hash, compress, encrypt and prove chunks.

Owns one encoder and one decoder for each thread, as they must not be shared, and the bytes of
chance. What is done with the chunks is decided by `sink` and `restore`.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np

from vzdump_qemu.formats.pbs import (
    BlobDecoder,
    BlobEncoder,
    DataBlob,
    EncryptionKey,
    chunk_digest,
    layout,
)
from vzdump_qemu.stores.system import cpu_count, start_thread, wait_done

# Beyond this the network is what everybody waits for.
WORKER_COUNT_MAX: Final = 8
_PROBE_BYTES: Final = 4096

_Result = TypeVar("_Result")
_Job: TypeAlias = "tuple[Callable[[BlobDecoder], Any], Future[Any]]"


def worker_count() -> int:
    """One thread for each processor, within reason."""
    return min(max(cpu_count(), 2), WORKER_COUNT_MAX)


def is_zero(data: memoryview) -> bool:
    """Whether all bytes are zero; cheap where they are not."""
    values = np.frombuffer(data, dtype=np.uint8)
    return not values[:_PROBE_BYTES].any() and not values.any()


class ChunkEncoder:
    """Names and encodes chunks, for any thread.

    Args:
        key: encrypts if given.
        chance: returns that many bytes that nobody can foresee.
    """

    def __init__(
        self,
        *,
        key: EncryptionKey | None,
        compress: bool = True,
        chance: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._key = key
        self._compress = compress
        self._chance = chance
        self._own = threading.local()

    def digest(self, content: memoryview) -> bytes:
        """The digest by which servers know this content."""
        return chunk_digest(content, self._key)

    def encode(self, content: memoryview, buffer: memoryview | None = None) -> DataBlob:
        """Compress and encrypt; the result shares no memory with the content.

        Args:
            buffer: as long as the content; what is encoded is put there, and stays good as long as
                it is left alone. None has memory taken for it.
        """
        encoder: BlobEncoder | None = getattr(self._own, "encoder", None)
        if encoder is None:
            encoder = self._own.encoder = BlobEncoder(key=self._key, compress=self._compress)
        iv = b"" if self._key is None else self._chance(layout.IV_BYTES)
        chunk = encoder.encode(content, iv=iv)
        if buffer is not None:
            # Compressed too: the memory that it is in now is good for the next one, and fresh
            # memory costs as much as hashing what is put there.
            payload = buffer[: len(chunk.payload)]
            payload[:] = chunk.payload
            return replace(chunk, payload=payload)
        if chunk.kind.is_encrypted or chunk.kind.is_compressed:
            return chunk
        return replace(chunk, payload=bytes(content))


class DecodeWorkers:
    """Threads with a decoder each, which take jobs in turn.

    Args:
        key: for what is encrypted.
        count: of threads.
    """

    def __init__(self, *, key: EncryptionKey | None, count: int) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._key = key
        self._threads = [start_thread(self._work, name="pbs-decode") for _ in range(count)]

    async def run(self, job: Callable[[BlobDecoder], _Result]) -> _Result:
        """Let a thread do it. Its caller bounds how many jobs there are.

        Cancelled: the job is done nevertheless unless nobody has begun it.
        """
        outcome: Future[_Result] = Future()
        self._jobs.put((job, outcome))
        return await asyncio.wrap_future(outcome)

    def close(self) -> None:
        """Let the threads end once they have done what they were given. Idempotent."""
        for _ in self._threads:
            self._jobs.put(None)

    async def wait_ended(self) -> None:
        """Wait until no thread does anything any more; only after `close`."""
        for thread in self._threads:
            await wait_done(thread)

    def _work(self) -> None:
        decoder = BlobDecoder(key=self._key)
        while (item := self._jobs.get()) is not None:
            job, outcome = item
            if not outcome.set_running_or_notify_cancel():
                continue
            try:
                result = job(decoder)
            except BaseException as error:
                outcome.set_exception(error)
            else:
                outcome.set_result(result)
            # Held until the next job otherwise, with the chunk in it.
            del item, job, outcome
