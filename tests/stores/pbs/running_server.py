"""A server of the simulator on a socket, and clients of ours for it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from vzdump_qemu.disk_ports import DiskOrigin, DiskReader, Extent
from vzdump_qemu.formats.pbs import (
    BackupGroup,
    BackupRef,
    BackupType,
    Fingerprint,
    Namespace,
    Repository,
)
from vzdump_qemu.formats.pbs.repository import AuthId
from vzdump_qemu.stores.pbs import (
    BackupKey,
    PbsDisk,
    PbsEndpoint,
    PbsUploaded,
    PbsUploader,
    Secret,
    Timeouts,
    TlsTrust,
    make_login,
)
from vzdump_qemu.stores.system import SystemClock
from vzsim.fakepbs import (
    DEFAULT_TOKEN,
    Account,
    Certificate,
    FakePbs,
    Fault,
    PbsConfig,
    PbsListener,
    PbsSurroundings,
)
from vzsim.world.disk_reader import list_extents

GROUP = BackupGroup(backup_type=BackupType.VM, backup_id="100")
FIRST_TIME_S = 1_700_000_000
CONFIGS = (("qemu-server.conf", b"scsi0: local:vm-100-disk-0\n" * 20), ("fw.conf", b"[OPTIONS]\n"))
# No test waits for these; a client that hangs fails a test soon.
TIMEOUTS = Timeouts(connect_s=10, call_s=20, stall_s=20, request_s=30, finish_s=30)


class SkippingClock(SystemClock):
    """A clock whose sleeps take no time but are kept; `skip` lets time pass."""

    def __init__(self) -> None:
        self.slept_s: list[float] = []
        self._skipped_ns = 0

    def now_ns(self) -> int:
        return super().now_ns() + self._skipped_ns

    def skip(self, seconds: float) -> None:
        self._skipped_ns += int(seconds * 1e9)

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.skip(seconds)
        await super().sleep(0)


@dataclass
class RunningServer:
    """A server with everything that is needed to be its client."""

    pbs: FakePbs
    listener: PbsListener
    port: int
    clock: SkippingClock = field(default_factory=SkippingClock)

    def endpoint(
        self,
        account: Account = DEFAULT_TOKEN,
        *,
        fingerprint: Fingerprint | None = None,
        timeouts: Timeouts = TIMEOUTS,
        secret: str = "",
    ) -> PbsEndpoint:
        auth_id = AuthId.parse(account.auth_id)
        return PbsEndpoint(
            Repository(datastore="tank", host="127.0.0.1", port=self.port, auth_id=auth_id),
            trust=TlsTrust(fingerprint=fingerprint or self.listener.fingerprint),
            login=make_login(auth_id, Secret(secret or account.secret), self.clock),
            clock=self.clock,
            timeouts=timeouts,
        )


@asynccontextmanager
async def running_server(*script: Fault, **config: object) -> AsyncIterator[RunningServer]:
    """A server that runs as long as the context."""
    now_s = time.time()
    pbs = FakePbs(
        PbsConfig(refusal_delay_s=0.0, **config),  # type: ignore[arg-type]
        PbsSurroundings(now_s=time.time, chance=os.urandom),
        script,
    )
    listener = PbsListener(pbs, Certificate.make(now_s))
    port = await listener.start()
    try:
        yield RunningServer(pbs, listener, port)
    finally:
        await listener.close()


class PatternDisk:
    """`DiskReader` of bytes in memory; what did not change is told if there is a bitmap.

    Attributes:
        read_bytes: how much was read.
    """

    def __init__(self, content: bytes, *, changed: Sequence[tuple[int, int]] | None = None) -> None:
        self._content = content
        self._changed = changed
        self.read_bytes = 0
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        return len(self._content)

    def extents(self, offset_bytes: int, length_bytes: int) -> Sequence[Extent]:
        changed = self._changed
        pieces = None if changed is None else [(begin, stop - begin) for begin, stop in changed]
        end = min(offset_bytes + length_bytes, len(self._content))
        return list_extents(pieces, offset_bytes, end)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        buffer[:] = self._content[offset_bytes : offset_bytes + len(buffer)]
        with self._lock:
            self.read_bytes += len(buffer)

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass


def backup_at(number: int) -> BackupRef:
    """The backup of that number, an hour after the one before."""
    return BackupRef(backup_group=GROUP, backup_time_s=FIRST_TIME_S + 3600 * number)


async def back_up(
    endpoint: PbsEndpoint,
    number: int,
    disks: Sequence[bytes],
    *,
    key: BackupKey | None = None,
    namespace: Namespace = Namespace(),  # noqa: B008
    compress: bool = True,
    bases: Sequence[bytes] = (),
    changed: Sequence[Sequence[tuple[int, int]]] = (),
) -> tuple[PbsUploaded, int, list[str]]:
    """Back up; the outcome, bytes read from the disks, and why they were read in full."""
    opened: list[PatternDisk] = []

    def open_disk(origin: DiskOrigin) -> DiskReader:
        number = int(origin.export_name)
        told = changed[number] if origin.bitmap_name and changed else None
        opened.append(PatternDisk(disks[number], changed=told))
        return opened[-1]

    uploader = PbsUploader(
        endpoint, clock=SkippingClock(), open_nbd=open_disk, compress=compress, thread_count=3
    )
    upload = await uploader.open(
        backup_at(number),
        [
            PbsDisk(
                device_id=f"drive-scsi{index}",
                size_bytes=len(content),
                base_csum=bases[index] if bases else b"",
            )
            for index, content in enumerate(disks)
        ],
        configs=CONFIGS,
        namespace=namespace,
        key=key,
    )
    try:
        transfer = await upload.begin(
            [
                DiskOrigin(
                    device_id=f"drive-scsi{index}",
                    size_bytes=len(content),
                    nbd_socket="memory",
                    export_name=str(index),
                    bitmap_name="changes" if bases else "",
                )
                for index, content in enumerate(disks)
            ]
        )
        try:
            await transfer.finish()
        finally:
            await transfer.cancel()
        uploaded = await upload.finish()
    finally:
        await upload.abort()
    reasons = [each.full_reason for each in upload.reuse]
    return uploaded, sum(disk.read_bytes for disk in opened), reasons
