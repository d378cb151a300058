"""The block layer of one machine: backends (``-drive``), nodes and their replies.

Owns what is attached and under which name, and the shapes of ``query-block`` and
``query-named-block-nodes``. Jobs are left to `jobs`, opening images to the `Host`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vzsim.fakeqmp.disks import Disk, FaultyDisk, LimitedDisk
from vzsim.fakeqmp.outside import Host
from vzsim.fakeqmp.schema import CommandError, Dialect, not_found

_NODE_NAME_LENGTH_MAX = 31
_DISK_FORMATS = ("raw", "qcow2")


@dataclass(slots=True, kw_only=True)
class Node:
    """One block node with its file below; `disk` is None where there is no medium."""

    name: str
    file_name: str
    driver: str
    path: str
    disk: Disk | None
    read_only: bool = False
    in_use_by: str = ""
    throttled: Node | None = None
    owns_throttled: bool = False

    @property
    def source(self) -> Node:
        """The node whose bytes a backup takes: a throttle filter is looked through."""
        return self.throttled or self


@dataclass(slots=True, kw_only=True)
class Backend:
    """One block backend; `device_id` is empty for a device that uses a node directly."""

    device_id: str
    node: Node | None
    qdev: str = ""
    removable: bool = False
    io_status: str = "ok"


class BlockLayer:
    """Names and images of one machine."""

    def __init__(self, host: Host, dialect: Dialect) -> None:
        self._host = host
        self._dialect = dialect
        self._backends: list[Backend] = []
        self._nodes: dict[str, Node] = {}
        self._made_up_count = 0

    def make_up_name(self) -> str:
        """A node name as QEMU makes them up."""
        self._made_up_count += 1
        return f"#block{self._made_up_count:03}"

    def add_drive(self, options: Mapping[str, str]) -> Backend:
        """``-drive`` and HMP ``drive_add``: a backend with a node of a made-up name.

        Raises: CommandError, OSError, ConfigError.
        """
        device_id = options.get("id", "")
        if any(backend.device_id == device_id for backend in self._backends):
            raise CommandError(f"Duplicate ID '{device_id}' for drive")
        is_cdrom = options.get("media") == "cdrom"
        read_only = is_cdrom or options.get("readonly", options.get("read-only", "off")) == "on"
        node = None
        if "file" in options:
            node = self._open(
                self.make_up_name(),
                path=options["file"],
                driver=options.get("format", "raw"),
                read_only=read_only,
            )
        backend = Backend(device_id=device_id, node=node, removable=is_cdrom)
        self._backends.append(backend)
        return backend

    def add_disk(self, device_id: str, disk: Disk, *, read_only: bool = False) -> Backend:
        """A drive whose image is already open (machines built in memory)."""
        node = Node(
            name=self.make_up_name(),
            file_name=self.make_up_name(),
            driver="raw",
            path=f"{device_id}.raw",
            disk=disk,
            read_only=read_only,
        )
        self._nodes[node.name] = node
        backend = Backend(device_id=device_id, node=node, qdev=device_id.removeprefix("drive-"))
        self._backends.append(backend)
        return backend

    def add_node(self, options: Mapping[str, Any]) -> Node:
        """``blockdev-add`` and ``-blockdev``.

        Raises: CommandError, OSError, ConfigError.
        """
        name = str(options.get("node-name") or self.make_up_name())
        if len(name) > _NODE_NAME_LENGTH_MAX:
            raise CommandError("Node name too long")
        if name in self._nodes or any(node.file_name == name for node in self._nodes.values()):
            raise CommandError(f"Duplicate nodes with node-name='{name}'")
        if any(backend.device_id == name for backend in self._backends):
            raise CommandError(f"node-name={name} is conflicting with a device id")
        driver = str(options["driver"])
        below = options.get("file")
        read_only = bool(options.get("read-only", False))
        if driver == "throttle":
            return self._add_throttle(name, below)
        if driver == "host_cdrom":
            node = Node(
                name=name,
                file_name="",
                driver=driver,
                path=str(options.get("filename", "")),
                disk=None,
                read_only=read_only,
            )
            self._nodes[name] = node
            return node
        if driver not in (*_DISK_FORMATS, "file", "host_device"):
            raise CommandError(f"Parameter 'driver' does not accept value '{driver}'")
        if isinstance(below, str) and below in self._nodes:
            return self._add_over(name, driver, self._nodes[below], read_only=read_only)
        file_options: Mapping[str, Any] = below if isinstance(below, Mapping) else options
        if file_options["driver"] == "blkdebug":
            return self._add_faulty(name, driver, file_options)
        path = file_options.get("filename")
        if path is None:
            raise CommandError("Parameter 'filename' is missing")
        node = self._open(
            name,
            path=str(path),
            driver=driver if driver in _DISK_FORMATS else "raw",
            read_only=read_only,
            file_name=str(file_options.get("node-name", "")) if below else "",
        )
        if driver == "raw" and "size" in options and node.disk is not None:
            node.disk = LimitedDisk(node.disk, int(options["size"]))
        return node

    def _add_faulty(self, name: str, driver: str, debug: Mapping[str, Any]) -> Node:
        """A node over ``blkdebug``: the sector of its first injected error cannot be read."""
        node = self._open(
            name, path=str(debug["image"]["filename"]), driver=driver, read_only=False
        )
        for fault in debug.get("inject-error", [])[:1]:
            if node.disk is not None:
                node.disk = FaultyDisk(
                    node.disk, bad_sector=fault["sector"], errno_code=fault.get("errno", 5)
                )
        return node

    def _add_throttle(self, name: str, below: object) -> Node:
        child = self._nodes.get(below) if isinstance(below, str) else None
        if isinstance(below, Mapping):
            child = self.add_node(below)
        if child is None:
            raise CommandError(f"Cannot find device='' nor node-name='{below}'")
        node = Node(
            name=name,
            file_name=child.name,
            driver="throttle",
            path=child.path,
            disk=child.disk,
            read_only=child.read_only,
            throttled=child,
            owns_throttled=isinstance(below, Mapping),
        )
        child.in_use_by = name
        self._nodes[name] = node
        return node

    def _add_over(self, name: str, driver: str, below: Node, *, read_only: bool) -> Node:
        node = Node(
            name=name,
            file_name=below.name,
            driver=driver,
            path=below.path,
            disk=below.disk,
            read_only=read_only,
        )
        below.in_use_by = name
        self._nodes[name] = node
        return node

    def _open(
        self, name: str, *, path: str, driver: str, read_only: bool, file_name: str = ""
    ) -> Node:
        try:
            disk = self._host.open_disk(path, format_name=driver, read_only=read_only)
        except OSError as error:
            raise CommandError(f"Could not open '{path}': {error.strerror}") from error
        node = Node(
            name=name,
            file_name=file_name or self.make_up_name(),
            driver=driver,
            path=path,
            disk=disk,
            read_only=read_only,
        )
        self._nodes[name] = node
        return node

    def attach_device(self, drive: str, qdev: str) -> None:
        """``-device …,drive=…``: by backend name, else by node name.

        Raises: CommandError.
        """
        for backend in self._backends:
            if backend.device_id == drive:
                backend.qdev = qdev
                return
        node = self._nodes.get(drive)
        if node is None:
            raise CommandError(f"Property 'drive' can't find value '{drive}'")
        node.in_use_by = qdev
        self._backends.append(Backend(device_id="", node=node, qdev=qdev))

    def backend(self, device_id: str) -> Backend | None:
        """The backend of that name, if there is one."""
        for backend in self._backends:
            if backend.device_id == device_id and device_id:
                return backend
        return None

    def node(self, name: str) -> Node | None:
        """The node of that name, if there is one."""
        return self._nodes.get(name)

    def find(self, name: str) -> Node:
        """What a backup's device list may name: a backend, else a node.

        Raises: CommandError (class DeviceNotFound, or no medium in a node).
        EmptyDrive: a backend without medium, which the real one does not survive.
        """
        backend = self.backend(name)
        if backend is not None:
            if backend.node is None:
                raise EmptyDrive(name)
            return backend.node
        node = self._nodes.get(name)
        if node is None:
            raise not_found(name)
        if node.disk is None:
            raise CommandError(f"Device '{name}' has no medium")
        return node

    def default_names(self) -> list[str]:
        """The devices that a backup without a list takes: writable ones with a medium."""
        return [
            backend.device_id or backend.node.name
            for backend in self._backends
            if backend.node is not None and not backend.node.read_only and backend.qdev
        ]

    def remove_node(self, name: str) -> None:
        """``blockdev-del``.

        Raises: CommandError if there is none of that name, or it is in use.
        """
        node = self._nodes.get(name)
        if node is None:
            raise CommandError(f"Failed to find node with node-name='{name}'")
        if node.in_use_by:
            raise CommandError(f"Block device {name} is in use")
        if node.throttled is not None:
            node.throttled.in_use_by = ""
            if node.owns_throttled:
                self.remove_node(node.throttled.name)
        elif node.file_name in self._nodes:
            self._nodes[node.file_name].in_use_by = ""
        elif node.disk is not None:
            node.disk.close()
        del self._nodes[name]

    def remove_drive(self, device_id: str) -> None:
        """HMP ``drive_del``.

        Raises: CommandError (class DeviceNotFound).
        """
        backend = self.backend(device_id)
        if backend is None:
            raise not_found(device_id)
        self._backends.remove(backend)
        if backend.node is not None:
            del self._nodes[backend.node.name]
            if backend.node.disk is not None:
                backend.node.disk.close()

    def disks(self) -> Iterator[tuple[str, Disk]]:
        """Name and image of every disk that a guest sees."""
        for backend in self._backends:
            if backend.node is not None and backend.node.disk is not None and backend.qdev:
                yield backend.device_id or backend.node.name, backend.node.disk

    def release(self, user: str) -> None:
        """Nodes that this user held are free again."""
        for node in self._nodes.values():
            if node.in_use_by == user:
                node.in_use_by = ""

    def close(self) -> None:
        """Close every image."""
        for disk in {id(node.disk): node.disk for node in self._nodes.values()}.values():
            if disk is not None:
                disk.close()

    def describe_backends(self) -> list[dict[str, Any]]:
        """Reply of ``query-block``."""
        replies = []
        for backend in self._backends:
            reply: dict[str, Any] = {
                "device": backend.device_id,
                "locked": False,
                "removable": backend.removable,
                "type": "unknown",
            }
            if backend.qdev:
                reply["qdev"] = backend.qdev
                reply["io-status"] = backend.io_status
            if backend.node is not None:
                reply["inserted"] = self._describe(backend.node)
            if backend.removable:
                reply["tray_open"] = False
            replies.append(reply)
        return replies

    def describe_nodes(self) -> list[dict[str, Any]]:
        """Reply of ``query-named-block-nodes``: format nodes, each followed by its file."""
        replies = []
        for node in reversed(list(self._nodes.values())):
            replies.append(self._describe(node))
            if node.file_name and node.file_name not in self._nodes:
                replies.append(self._describe_file(node))
        return replies

    def _describe(self, node: Node) -> dict[str, Any]:
        reply = self._describe_common(node, node.name, node.driver)
        if self._dialect is Dialect.PVE and node.file_name:
            reply["children"] = [{"node-name": node.file_name, "child": "file"}]
        return reply

    def _describe_file(self, node: Node) -> dict[str, Any]:
        reply = self._describe_common(node, node.file_name, "file")
        reply["image"]["format-specific"] = {"type": "file", "data": {}}
        if self._dialect is Dialect.PVE:
            reply["children"] = []
        return reply

    def _describe_common(self, node: Node, name: str, driver: str) -> dict[str, Any]:
        zero_limits = ("iops_rd", "iops_wr", "iops", "bps_wr", "bps_rd", "bps", "write_threshold")
        reply: dict[str, Any] = dict.fromkeys(zero_limits, 0)
        disk = node.disk
        reply.update(
            {
                "detect_zeroes": "off",
                "image": {
                    "virtual-size": disk.size_bytes if disk else 0,
                    "filename": node.path,
                    "format": driver,
                    "actual-size": disk.allocated_bytes if disk else 0,
                    "dirty-flag": False,
                },
                "ro": node.read_only,
                "node-name": name,
                "backing_file_depth": 0,
                "drv": driver,
                "encrypted": False,
                "cache": {"no-flush": False, "direct": False, "writeback": True},
                "file": node.path,
            }
        )
        if self._dialect is Dialect.PVE:
            reply["active"] = True
        if driver == "qcow2":
            reply["image"]["cluster-size"] = 65536
            reply["image"]["format-specific"] = {
                "type": "qcow2",
                "data": {
                    "compat": "1.1",
                    "compression-type": "zlib",
                    "lazy-refcounts": False,
                    "refcount-bits": 16,
                    "corrupt": False,
                    "extended-l2": False,
                },
            }
        return reply


class EmptyDrive(Exception):
    """A backup's device list names a drive without a medium."""
