"""The arguments of ``lab``: disks with sizes, and which QEMU program is meant.

Owns their grammar; making a lab is left to `node.lab`. Sizes are those of VM configurations
(host behaviour, section 3.5).
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.formats.property_string import parse_size
from vzdump_qemu.units import SECTOR_BYTES

_DISK = re.compile(r"([a-z]+\d+)=([^,]+)(?:,format=(raw|qcow2))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskRequest:
    """One disk of a new VM; the size is a multiple of 512 bytes."""

    key: str
    size_bytes: int
    format: str


if TYPE_CHECKING:
    _DiskTypeBase = click.ParamType[DiskRequest]
else:
    # Older versions of click know no type arguments.
    _DiskTypeBase = click.ParamType


class DiskType(_DiskTypeBase):
    """``KEY=SIZE[,format=raw|qcow2]``, e.g. ``scsi0=32M`` or ``virtio1=20972032,format=qcow2``."""

    name = "KEY=SIZE[,format=raw|qcow2]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> DiskRequest:
        match = _DISK.fullmatch(str(value))
        if match is None:
            self.fail(f"'{value}' is not {self.name}, e.g. scsi0=32M", param, ctx)
        try:
            size_bytes = parse_size(match[2])
        except ConfigError as error:
            self.fail(str(error), param, ctx)
        if not size_bytes or size_bytes % SECTOR_BYTES:
            self.fail(f"the size of '{match[1]}' must be a multiple of 512 bytes", param, ctx)
        return DiskRequest(key=match[1], size_bytes=size_bytes, format=match[3] or "raw")


def resolve_qemu(program: str) -> str:
    """The absolute path of a QEMU program.

    One that is not in PATH is looked for beside the running interpreter: that is where an
    environment that was never activated has its programs.

    Raises: click.UsageError if there is none.
    """
    found = shutil.which(program)
    if found is None and os.path.basename(program) == program:
        found = shutil.which(program, path=os.path.dirname(sys.executable))
    if found is None:
        raise click.UsageError(f"unable to find command '{program}'")
    return os.path.abspath(found)
