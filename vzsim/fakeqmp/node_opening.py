"""Opening block nodes: what the options of ``blockdev-add`` and ``-blockdev`` lead to.

Owns the checks of the options, their error texts, and the image locks taken at opening. Names are
registered by `block`. Source: recorded sessions ``stock-pull-errors``, ``qsd-*``, ``pve-*``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from vzsim.fakeqmp.copy_before_write import CopyBeforeWrite, OverlayDisk, SnapshotDisk
from vzsim.fakeqmp.disks import Disk, FaultyDisk, FormatMismatch, LimitedDisk
from vzsim.fakeqmp.nodes import Node
from vzsim.fakeqmp.outside import Host
from vzsim.fakeqmp.schema import CommandError
from vzsim.fakeqmp.storage_host import StorageHost
from vzsim.fakeqmp.user_objects import UserObjects

_NODE_NAME_LENGTH_MAX = 31
_FORMATS = ("raw", "qcow2")
_FILE_DRIVERS = ("file", "host_device")
_FILTERS = ("throttle", "copy-before-write", "snapshot-access")
_OPTIONS = frozenset(
    {
        "driver", "node-name", "file", "backing", "filename", "read-only", "auto-read-only",
        "force-share", "detect-zeroes", "discard", "cache", "locking", "aio", "size", "offset",
        "image", "inject-error", "limits", "throttle-group", "target", "on-cbw-error",
        "cbw-timeout", "bitmap", "lazy-refcounts", "pass-discard-request",
        "pass-discard-snapshot", "pass-discard-other", "discard-no-unref",
    }
)  # fmt: skip


class NodeOpener:
    """Makes nodes from options.

    Args:
        find: a node by its name, or None.
        make_up_name: a new name of QEMU's making.
    """

    def __init__(
        self,
        host: Host,
        storage: StorageHost,
        objects: UserObjects,
        *,
        find: Callable[[str], Node | None],
        make_up_name: Callable[[], str],
    ) -> None:
        self._host = host
        self._storage = storage
        self._objects = objects
        self._find = find
        self._make_up_name = make_up_name

    def check_options(self, options: Mapping[str, Any]) -> None:
        """What a command line lacks, and what is not simulated. Raises: CommandError."""
        driver = options["driver"]
        if driver not in (*_FORMATS, *_FILE_DRIVERS, *_FILTERS, "host_cdrom"):
            raise CommandError(f"The driver {driver} is not simulated")
        for name in options:
            if name not in _OPTIONS:
                raise CommandError(f"Parameter '{name}' is unexpected")
        if driver in _FILE_DRIVERS and "filename" not in options:
            raise CommandError("Parameter 'filename' is missing")
        if driver in (*_FORMATS, *_FILTERS) and not {"file", "filename"} & options.keys():
            raise CommandError("Parameter 'file' is missing")

    @staticmethod
    def check_name(name: str) -> None:
        """Raises: CommandError for a name that a user may not give."""
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", name):
            raise CommandError(f"Invalid node-name: '{name}'")
        if len(name) > _NODE_NAME_LENGTH_MAX:
            raise CommandError("Node name too long")

    def open(self, name: str, options: Mapping[str, Any], add: Callable[..., Node]) -> Node:
        """Open a node; ``add`` opens and registers one that is described inside.

        Raises: CommandError, OSError, ConfigError.
        """
        driver = str(options["driver"])
        below = options.get("file")
        if driver in _FILTERS:
            return self._open_filter(name, driver, options, add)
        if driver == "host_cdrom":
            return Node(
                name=name,
                file_name="",
                driver=driver,
                path=str(options.get("filename", "")),
                disk=None,
                read_only=bool(options.get("read-only", False)),
            )
        if isinstance(below, str):
            return self._open_over(name, driver, self._existing(below), options)
        return self._open_image(name, driver, options)

    def open_path(
        self, name: str, *, path: str, driver: str, read_only: bool, file_name: str = ""
    ) -> Node:
        """Open an image by its path. Raises: CommandError, ConfigError."""
        node = Node(
            name=name,
            file_name=file_name or self._make_up_name(),
            driver=driver,
            path=path,
            disk=self._open_disk(path, driver, read_only=read_only),
            read_only=read_only,
        )
        if driver == "qcow2":
            self._add_stored_bitmaps(node)
        return node

    def hold(self, node: Node, *, writes: bool, alone: bool) -> None:
        """Take the lock of the node's image. Raises: CommandError."""
        if node.path and not node.force_share:
            self._storage.locks.take(node.path, node, writes=writes, alone=alone)

    def let_go(self, node: Node) -> None:
        """Fall back to what the node holds without users."""
        self._storage.locks.release(node.path, node)
        if node.driver == "qcow2":
            self.hold(node, writes=not node.read_only, alone=True)

    def close(self, node: Node) -> None:
        """The node is gone: its lock too."""
        self._storage.locks.release(node.path, node)

    def _existing(self, name: str) -> Node:
        node = self._find(name)
        if node is None:
            raise CommandError(f"Cannot find device='{name}' nor node-name='{name}'")
        return node

    def _open_disk(self, path: str, driver: str, *, read_only: bool) -> Disk:
        try:
            return self._host.open_disk(path, format_name=driver, read_only=read_only)
        except FormatMismatch as error:
            raise CommandError(f"Image is not in {driver} format") from error
        except OSError as error:
            raise CommandError(f"Could not open '{path}': {error.strerror}") from error

    def _open_image(self, name: str, driver: str, options: Mapping[str, Any]) -> Node:
        below = options.get("file")
        file_options: Mapping[str, Any] = below if isinstance(below, Mapping) else options
        if file_options["driver"] == "blkdebug":
            return self._open_faulty(name, driver, file_options)
        read_only = bool(options.get("read-only", False))
        path = file_options.get("filename")
        if path is None:
            raise CommandError("Parameter 'filename' is missing")
        backing = self._backing(options)
        node = Node(
            name=name,
            file_name="",
            driver=driver,
            path=str(path),
            disk=None,
            read_only=read_only,
            is_direct=_is_direct(options),
            file_is_direct=_is_direct(file_options),
            force_share=bool(options.get("force-share", False)),
        )
        if driver not in _FILE_DRIVERS:
            node.file_name = str(file_options.get("node-name", "")) or self._make_up_name()
        if driver == "qcow2":
            self._check_present(str(path), driver, read_only=read_only)
            self.hold(node, writes=not read_only, alone=True)
        try:
            node.disk = self._open_disk(str(path), driver, read_only=read_only)
        except CommandError:
            self.close(node)
            raise
        if driver == "qcow2":
            self._add_stored_bitmaps(node)
        if backing is not None and backing.disk is not None:
            node.backing = backing
            held = self._storage.held_pieces(node.disk)
            node.disk = OverlayDisk(node.disk, backing.disk, held=held)
            backing.parents.add(name)
        if driver == "raw" and "size" in options:
            node.disk = LimitedDisk(node.disk, int(options["size"]))
        return node

    def _check_present(self, path: str, driver: str, *, read_only: bool) -> None:
        """A missing file is told before a lock that cannot be had; the format after it."""
        try:
            self._host.open_disk(path, format_name="raw", read_only=read_only).close()
        except OSError as error:
            raise CommandError(f"Could not open '{path}': {error.strerror}") from error

    def _backing(self, options: Mapping[str, Any]) -> Node | None:
        name = options.get("backing")
        if not isinstance(name, str):
            return None
        node = self._find(name)
        if node is None:
            raise CommandError(
                f"Could not open backing file: Cannot find device='{name}' nor node-name='{name}'"
            )
        return node

    def _add_stored_bitmaps(self, node: Node) -> None:
        for bitmap in self._storage.stored_bitmaps(node.path):
            node.bitmaps[bitmap.name] = bitmap

    def _open_faulty(self, name: str, driver: str, debug: Mapping[str, Any]) -> Node:
        """A node over ``blkdebug``: the sector of its first injected error cannot be read."""
        node = self.open_path(
            name, path=str(debug["image"]["filename"]), driver=driver, read_only=False
        )
        for fault in debug.get("inject-error", [])[:1]:
            if node.disk is not None:
                node.disk = FaultyDisk(
                    node.disk, bad_sector=fault["sector"], errno_code=fault.get("errno", 5)
                )
        return node

    def _open_over(self, name: str, driver: str, below: Node, options: Mapping[str, Any]) -> Node:
        read_only = bool(options.get("read-only", False))
        disk = below.disk
        if driver != below.driver and driver == "qcow2":
            disk = self._open_disk(below.path, driver, read_only=read_only)
        backing = self._backing(options)
        if disk is not None and backing is not None and backing.disk is not None:
            disk = OverlayDisk(disk, backing.disk, held=self._storage.held_pieces(disk))
            backing.parents.add(name)
        node = Node(
            name=name,
            file_name=below.name,
            driver=driver,
            path=below.path,
            disk=disk,
            read_only=read_only,
            is_direct=_is_direct(options),
            # What is written through it passes the node below, with its bitmaps.
            below=below if driver == "raw" and disk is below.disk else None,
            backing=backing,
        )
        if driver == "qcow2":
            self.hold(node, writes=not read_only, alone=True)
            self._add_stored_bitmaps(node)
        below.parents.add(name)
        return node

    def _open_filter(
        self, name: str, driver: str, options: Mapping[str, Any], add: Callable[..., Node]
    ) -> Node:
        below = options.get("file")
        is_inside = isinstance(below, Mapping)
        group = str(options.get("throttle-group", ""))
        if driver == "throttle":
            self._objects.require_throttle_group(group)
        child = add(below) if is_inside else self._existing(str(below))
        if driver == "throttle":
            self._objects.join_throttle_group(group, name)
        node = Node(
            name=name,
            file_name=child.name,
            driver=driver,
            path=child.path,
            disk=child.disk,
            read_only=child.read_only,
            below=child,
            owns_below=is_inside,
        )
        if driver == "copy-before-write":
            self._arm(node, child, options)
        if driver == "snapshot-access":
            if not child.guards:
                raise CommandError("Can't get snapshot access of a node without a filter")
            node.disk, node.read_only = SnapshotDisk(child.guards[0]), True
        child.parents.add(name)
        return node

    def _arm(self, node: Node, child: Node, options: Mapping[str, Any]) -> None:
        target = self._existing(str(options.get("target", "")))
        if child.disk is None or target.disk is None:
            raise CommandError("Cannot copy without a medium")
        # A target that is too short is only found out when a piece does not fit.
        how = options.get("on-cbw-error", "break-guest-write")
        node.guards.append(
            CopyBeforeWrite(child.disk, target.disk, breaks_guest_write=how == "break-guest-write")
        )
        target.parents.add(node.name)


def _is_direct(options: Mapping[str, Any]) -> bool:
    cache = options.get("cache")
    return bool(cache.get("direct", False)) if isinstance(cache, Mapping) else cache == "none"
