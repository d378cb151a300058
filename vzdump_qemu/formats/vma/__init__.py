"""VMA, the archive format of native VM backups: a codec without I/O.

`VmaWriter` makes archives, `VmaReader` reads them, `VmaStreamCheck` proves one that passes by.
Source: VMA format, version 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vzdump_qemu.formats.vma import layout
from vzdump_qemu.formats.vma.header import ConfigBlob, VmaDevice, VmaHeader, encode_header

if TYPE_CHECKING:
    from vzdump_qemu.formats.vma.book import ClusterBook, DeviceTally
    from vzdump_qemu.formats.vma.extent import DataRun, VmaExtent
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

# Loading the array library takes longer than reaching a VM: only what works on data does it.
_HEAVY: Mapping[str, str] = MappingProxyType(
    {
        "Buffer": "writer",
        "ClusterBook": "book",
        "DataRead": "reader",
        "DataRun": "extent",
        "DeviceTally": "book",
        "ExtentRead": "reader",
        "HeaderRead": "reader",
        "VmaEvent": "reader",
        "VmaExtent": "extent",
        "VmaReader": "reader",
        "VmaStreamCheck": "reader",
        "VmaWriter": "writer",
        "stored_blocks": "zeroes",
    }
)


def __getattr__(name: str) -> Any:
    if name not in _HEAVY:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HEAVY[name]}"), name)


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
