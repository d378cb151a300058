"""VMA, the archive format of native VM backups: a codec without I/O.

`VmaWriter` makes archives, `VmaReader` reads them, `VmaStreamCheck` proves one that passes by.
Source: VMA format, version 1.
"""

from vzdump_qemu.formats.vma import layout
from vzdump_qemu.formats.vma.book import ClusterBook, DeviceTally
from vzdump_qemu.formats.vma.extent import DataRun, VmaExtent
from vzdump_qemu.formats.vma.header import ConfigBlob, VmaDevice, VmaHeader, encode_header
from vzdump_qemu.formats.vma.reader import (
    DataRead,
    ExtentRead,
    HeaderRead,
    VmaEvent,
    VmaReader,
    VmaStreamCheck,
)
from vzdump_qemu.formats.vma.writer import Buffer, VmaWriter
from vzdump_qemu.formats.vma.zeroes import stored_blocks

__all__ = [
    "Buffer",
    "ClusterBook",
    "ConfigBlob",
    "DataRead",
    "DataRun",
    "DeviceTally",
    "ExtentRead",
    "HeaderRead",
    "VmaDevice",
    "VmaEvent",
    "VmaExtent",
    "VmaHeader",
    "VmaReader",
    "VmaStreamCheck",
    "VmaWriter",
    "encode_header",
    "layout",
    "stored_blocks",
]
