"""The book of vma_clusters: every one of every disk exactly once, as writer and readers need.

Memory follows the clusters met, not the sizes claimed in a header: 1 bit per cluster in pages
that are dropped once full, and never more than `SPARSE_PAGES_BYTES_MAX` plus a byte per cluster.
Source: VMA format, sections 5, 6, 7 and 10.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vzdump_qemu.errors import VmaError
from vzdump_qemu.formats.vma.header import VmaDevice

PAGE_CLUSTER_COUNT = 65536
_PAGE_BYTES = PAGE_CLUSTER_COUNT // 8
# 8192 pages: disks of 32 TiB in all, in any order. More must come reasonably dense.
SPARSE_PAGES_BYTES_MAX = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTally:
    """What an archive holds of one device.

    Attributes:
        vma_cluster_count: clusters met so far.
        zero_cluster_count: those of them without any stored block.
        stored_block_count: 4096-byte blocks stored.
    """

    device: VmaDevice
    vma_cluster_count: int
    zero_cluster_count: int
    stored_block_count: int


class _DeviceBook:
    """Clusters met of one device. A page that is None is full."""

    __slots__ = (
        "cluster_count", "counts", "device", "pages", "seen_count", "stored_block_count",
        "zero_cluster_count",
    )  # fmt: skip

    def __init__(self, device: VmaDevice) -> None:
        self.device = device
        self.cluster_count = device.vma_cluster_count
        self.pages: dict[int, bytearray | None] = {}
        self.counts: dict[int, int] = {}
        self.seen_count = 0
        self.stored_block_count = 0
        self.zero_cluster_count = 0


class ClusterBook:
    """Counts the clusters of all devices of one archive."""

    def __init__(self, devices: Iterable[VmaDevice]) -> None:
        self._books = {device.vma_dev_id: _DeviceBook(device) for device in devices}
        self._page_bytes = 0
        self._seen_count = 0

    def device(self, vma_dev_id: int) -> VmaDevice | None:
        """The device of that number, or None."""
        book = self._books.get(vma_dev_id)
        return None if book is None else book.device

    def seen_count(self, vma_dev_id: int) -> int:
        """Clusters of that device met so far."""
        return self._books[vma_dev_id].seen_count

    def stored_count(self, vma_dev_id: int) -> int:
        """Blocks of that device stored so far."""
        return self._books[vma_dev_id].stored_block_count

    def tallies(self) -> tuple[DeviceTally, ...]:
        """What was met so far, one row per device."""
        return tuple(
            DeviceTally(
                device=book.device,
                vma_cluster_count=book.seen_count,
                zero_cluster_count=book.zero_cluster_count,
                stored_block_count=book.stored_block_count,
            )
            for book in self._books.values()
        )

    def add_amounts(
        self, vma_dev_id: int, *, stored_block_count: int, zero_cluster_count: int
    ) -> None:
        """Count stored blocks and empty clusters of a device."""
        book = self._books[vma_dev_id]
        book.stored_block_count += stored_block_count
        book.zero_cluster_count += zero_cluster_count

    def mark(self, vma_dev_id: int, first_index: int, count: int) -> None:
        """Note ``count`` adjacent clusters of a known device.

        Raises:
            VmaError: beyond the end of the device, met before, or out of order for a RAM state.
        """
        book = self._books[vma_dev_id]
        name = book.device.name
        if book.device.is_vmstate:
            if first_index != book.seen_count:
                raise VmaError(
                    f"found out of order vmstate data ({first_index} instead of {book.seen_count})"
                )
            book.seen_count += count
            return
        end = first_index + count
        if end > book.cluster_count:
            raise VmaError(
                f"vma cluster {max(first_index, book.cluster_count)} of stream {name} is beyond "
                f"its end ({book.cluster_count} clusters)"
            )
        while first_index < end:
            page_index, at = divmod(first_index, PAGE_CLUSTER_COUNT)
            step = min(end - first_index, PAGE_CLUSTER_COUNT - at)
            self._mark_in_page(book, page_index, at, step)
            first_index += step
        book.seen_count += count
        self._seen_count += count

    def check_complete(self) -> None:
        """Raise VmaError naming the first disk with missing clusters, their number, the first."""
        for book in self._books.values():
            if book.device.is_vmstate or book.seen_count == book.cluster_count:
                continue
            missing_count = book.cluster_count - book.seen_count
            raise VmaError(
                f"detected missing cluster {_first_missing(book)} for stream {book.device.name} "
                f"({missing_count} of {book.cluster_count} clusters missing)"
            )

    def _mark_in_page(self, book: _DeviceBook, page_index: int, at: int, count: int) -> None:
        base = page_index * PAGE_CLUSTER_COUNT
        page = book.pages.get(page_index, _ABSENT)
        if page is None:
            raise _duplicate(book, base + at)
        if page is _ABSENT:
            page = self._new_page()
            book.pages[page_index] = page
            book.counts[page_index] = 0
        begin, end = at >> 3, (at + count + 7) >> 3
        met = int.from_bytes(page[begin:end], "little")
        mask = ((1 << count) - 1) << (at & 7)
        twice = met & mask
        if twice:
            first = (twice & -twice).bit_length() - 1
            raise _duplicate(book, base + begin * 8 + first)
        seen_count = book.counts[page_index] + count
        if seen_count == min(PAGE_CLUSTER_COUNT, book.cluster_count - base):
            book.pages[page_index] = None
            del book.counts[page_index]
            self._page_bytes -= _PAGE_BYTES
            return
        book.counts[page_index] = seen_count
        page[begin:end] = (met | mask).to_bytes(end - begin, "little")

    def _new_page(self) -> bytearray:
        self._page_bytes += _PAGE_BYTES
        if self._page_bytes > SPARSE_PAGES_BYTES_MAX + self._seen_count:
            raise VmaError("vma clusters are too scattered to be accounted for")
        return bytearray(_PAGE_BYTES)


_ABSENT = bytearray()


def _duplicate(book: _DeviceBook, index: int) -> VmaError:
    return VmaError(f"found duplicated cluster {index} for stream {book.device.name}")


def _first_missing(book: _DeviceBook) -> int:
    page_index = 0
    while True:
        page = book.pages.get(page_index, _ABSENT)
        if page is None:
            page_index += 1
            continue
        met = int.from_bytes(page, "little")
        gap = ~met & (met + 1)
        return page_index * PAGE_CLUSTER_COUNT + gap.bit_length() - 1
