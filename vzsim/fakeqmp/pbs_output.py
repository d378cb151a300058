"""The writing end of a backup to a server: chunks under way, and the end of the backup.

Owns how many chunks are under way, which is what holds back the jobs and the guest's writes, and
what the process remembers for the next incremental backup. The protocol is the library's.
Source: PVE interface, sections 4, 6 and 9.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vzdump_qemu.formats.pbs.layout import CHUNK_BYTES
from vzsim.fakeqmp.backup_state import BackupFigures
from vzsim.fakeqmp.disks import Disk
from vzsim.fakeqmp.pbs_port import PbsFailed, PbsLibrary, PbsWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class PbsTarget:
    """A backup that has been begun at a server.

    Attributes:
        device_ids: in the order of the device list.
        chunk_count_max: how many chunks may be under way.
        index_csums: of each disk, as this process sent it last; the next backup looks there.
    """

    library: PbsLibrary
    writer: PbsWriter
    device_ids: Sequence[str]
    chunk_count_max: int
    index_csums: dict[str, bytes] = field(repr=False)


class PbsOutput:
    """Chunks of one backup.

    Args:
        on_drained: see `BackupOutput`.
    """

    def __init__(
        self, target: PbsTarget, figures: BackupFigures, *, on_drained: Callable[[], None]
    ) -> None:
        self._target = target
        self._figures = figures
        self._on_drained = on_drained
        self._underway_count = 0
        self._is_finishing = False
        self._error_text = ""

    @property
    def piece_bytes(self) -> int:
        """A chunk."""
        return CHUNK_BYTES

    @property
    def error_text(self) -> str:
        """As the port says."""
        return self._error_text

    @property
    def is_blocked(self) -> bool:
        """As many chunks are under way as may be, or the server is finishing."""
        return self._is_finishing or self._underway_count >= self._target.chunk_count_max

    @property
    def is_settled(self) -> bool | None:
        """No chunk is under way."""
        return not self._underway_count

    @property
    def free_piece_count(self) -> int:
        """Chunks are added one at a time."""
        return 1

    def take(self, dev_number: int, first_index: int, count: int, source: Disk) -> int:
        """As the port says; the chunk is sent by and by."""
        offset_bytes = first_index * CHUNK_BYTES
        length_bytes = min(count * CHUNK_BYTES, source.size_bytes - offset_bytes)
        data = bytes(source.read(offset_bytes, length_bytes))
        is_zero = data.count(0) == length_bytes
        # Only a whole chunk of zeroes is known to every server.
        content = None if is_zero and length_bytes == CHUNK_BYTES else data
        self._underway_count += 1
        device_id = self._target.device_ids[dev_number - 1]
        self._target.library.spawn(self._write(device_id, first_index, content, length_bytes))
        return length_bytes if is_zero else 0

    def finish(self) -> None:
        """As the port says: close the indexes and have the server finish, or give up."""
        if self._figures.error_text or self._error_text:
            self.close()
            self._on_drained()
            return
        # From here on the disks count as saved; what an end without success leaves at the server
        # is no base that fits.
        for device_id in self._target.device_ids:
            self._target.index_csums.pop(device_id, None)
        self._is_finishing = True
        self._target.library.spawn(self._finish())

    def drop(self) -> None:
        """As the port says: what is under way fails at once, whatever the server does."""
        self.close()

    def close(self) -> None:
        """As the port says."""
        self._target.writer.abort()

    async def _write(
        self, device_id: str, chunk_index: int, data: bytes | None, length_bytes: int
    ) -> None:
        try:
            is_reused = await self._target.writer.write(device_id, chunk_index, data)
            if is_reused:
                self._figures.reused_bytes += length_bytes
        except PbsFailed as error:
            self._fail(f"backup write data failed: {error}")
        was_blocked = self.is_blocked
        self._underway_count -= 1
        if was_blocked or not self._underway_count or self._error_text:
            self._on_drained()

    async def _finish(self) -> None:
        writer, step = self._target.writer, "close image"
        try:
            # The jobs ended in this order.
            for device_id in reversed(self._target.device_ids):
                self._target.index_csums[device_id] = await writer.close_image(device_id)
            step, self._figures.finishing = "finish", True
            await writer.finish()
        except PbsFailed as error:
            self._fail(f"backup {step} failed: {error}")
        self._figures.finishing = self._is_finishing = False
        self._on_drained()

    def _fail(self, text: str) -> None:
        self._error_text = self._error_text or text
