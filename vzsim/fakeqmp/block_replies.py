"""Replies that describe nodes: the shapes of ``query-block`` and ``query-named-block-nodes``.

Source: recorded sessions ``stock-pull-*``, ``stock-bitmaps``, ``qsd-*``, ``pve-*``.
"""

from __future__ import annotations

import json
from typing import Any

from vzsim.fakeqmp.bitmaps import GRANULARITY_BYTES
from vzsim.fakeqmp.disks import LimitedDisk
from vzsim.fakeqmp.nodes import Node
from vzsim.fakeqmp.schema import Dialect

_LIMITS = ("iops_rd", "iops_wr", "iops", "bps_wr", "bps_rd", "bps", "write_threshold")
_PERSISTENT_FLAGS = ["auto"]


def describe_node(node: Node, dialect: Dialect) -> dict[str, Any]:
    """One node, without its file."""
    reply = _common(node, node.name, node.driver, dialect, is_direct=node.is_direct)
    file_name = _file_name(node)
    reply["file"] = reply["image"]["filename"] = file_name
    lower = node.below if node.driver == "copy-before-write" else node.backing
    if lower is not None:
        reply["backing_file_depth"] = 1
        reply["image"]["backing-image"] = _image(lower, lower.driver)
    if node.backing is not None:
        reply["backing_file"] = node.backing.path
    bitmaps = _bitmaps(node)
    if bitmaps:
        reply["dirty-bitmaps"] = bitmaps
    if dialect is Dialect.PVE:
        reply["children"] = (
            [{"node-name": node.file_name, "child": "file"}] if node.file_name else []
        )
    return reply


def describe_file(node: Node, dialect: Dialect) -> dict[str, Any]:
    """The file below a format node."""
    reply = _common(node, node.file_name, "file", dialect, is_direct=node.file_is_direct)
    if isinstance(node.disk, LimitedDisk):
        reply["image"]["virtual-size"] = node.disk.size_below_bytes
    if dialect is Dialect.PVE:
        reply["image"]["format-specific"] = {"type": "file", "data": {}}
        reply["children"] = []
    return reply


def _file_name(node: Node) -> str:
    """QEMU names an overlay whose backing was given at run time by its options."""
    if node.backing is None:
        return node.path
    options = {
        "backing": {
            "driver": node.backing.driver,
            "file": {"driver": "file", "filename": node.backing.path},
        },
        "driver": node.driver,
        "file": {"driver": "file", "filename": node.path},
    }
    return f"json:{json.dumps(options)}"


def _bitmaps(node: Node) -> list[dict[str, Any]]:
    """The newest first; a filter's bookkeeping shows as bitmaps without names."""
    found = [
        _anonymous(len(guard.todo)) for guard in node.guards if node.driver != "copy-before-write"
    ]
    if node.driver == "copy-before-write":
        for guard in node.guards:
            found.append(_anonymous(len(guard.todo) + len(guard.done)))
            found.append(_anonymous(len(guard.done)))
    return found + [bitmap.describe() for bitmap in reversed(node.bitmaps.values())]


def _anonymous(count: int) -> dict[str, Any]:
    return {
        "recording": False,
        "persistent": False,
        "busy": False,
        "granularity": GRANULARITY_BYTES,
        "count": count * GRANULARITY_BYTES,
    }


def _image(node: Node, driver: str) -> dict[str, Any]:
    disk = node.disk
    return {
        "virtual-size": disk.size_bytes if disk else 0,
        "filename": node.path,
        "format": driver,
        "actual-size": disk.allocated_bytes if disk else 0,
        "dirty-flag": False,
    }


def _common(
    node: Node, name: str, driver: str, dialect: Dialect, *, is_direct: bool
) -> dict[str, Any]:
    reply: dict[str, Any] = dict.fromkeys(_LIMITS, 0)
    reply.update(
        {
            "detect_zeroes": "off",
            "image": _image(node, driver),
            "ro": node.read_only,
            "node-name": name,
            "backing_file_depth": 0,
            "drv": driver,
            "encrypted": False,
            "cache": {"no-flush": False, "direct": is_direct, "writeback": True},
            "file": node.path,
        }
    )
    if dialect is Dialect.PVE:
        reply["active"] = True
    if driver == "qcow2":
        reply["image"]["cluster-size"] = 65536
        data: dict[str, Any] = {
            "compat": "1.1",
            "compression-type": "zlib",
            "lazy-refcounts": False,
            "refcount-bits": 16,
            "corrupt": False,
            "extended-l2": False,
        }
        stored = [
            {
                "flags": _PERSISTENT_FLAGS,
                "name": bitmap.name,
                "granularity": bitmap.granularity_bytes,
            }
            for bitmap in node.bitmaps.values()
            if bitmap.persistent
        ]
        if stored:
            data["bitmaps"] = stored
        reply["image"]["format-specific"] = {"type": "qcow2", "data": data}
    return reply
