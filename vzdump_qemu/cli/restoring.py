"""Making a VM of a folder node from an archive.

Owns the new volumes and their names, what stands in the way, and that a failure leaves neither a
volume nor a changed configuration: the configuration is written last, in one step. How a stored
configuration is rewritten is `restored_config`'s, reading the archive `stores.archive_reading`'s.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from vzdump_qemu.cli.restored_config import (
    MappedDisk,
    NewVolume,
    RestoredConfig,
    read_map,
    rewrite_config,
)
from vzdump_qemu.errors import ConfigError, StorageError, TargetError, VmaError, VmLocked
from vzdump_qemu.formats.storage_config import parse_storage_config
from vzdump_qemu.formats.vm_config import parse_vm_config
from vzdump_qemu.formats.vma import VmaHeader
from vzdump_qemu.node.layout import NodeLayout
from vzdump_qemu.ports import Node

CONFIG_NAME = "qemu-server.conf"
FIREWALL_NAME = "qemu-server.fw"
_VMID_MIN, _VMID_MAX = 100, 999_999_999


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredDisk:
    """One disk and where it is now."""

    key: str
    device_id: str
    volid: str
    path: str
    size_bytes: int
