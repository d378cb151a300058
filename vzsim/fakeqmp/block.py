"""The block layer of one machine: backends (``-drive``) and nodes by name, and who uses them.

Opening is `node_opening`'s, replies are `block_replies`', jobs are `jobs`'. Source: recorded
sessions ``stock-*``, ``qsd-*``, ``pve-*``.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

from vzsim.fakeqmp.block_replies import describe_file, describe_node
from vzsim.fakeqmp.copy_before_write import CopyBeforeWrite, SnapshotDisk
from vzsim.fakeqmp.disks import Disk
from vzsim.fakeqmp.node_opening import NodeOpener
from vzsim.fakeqmp.nodes import Backend, EmptyDrive, Node
from vzsim.fakeqmp.outside import Host
from vzsim.fakeqmp.schema import CommandError, Dialect, not_found
from vzsim.fakeqmp.storage_host import StorageHost
from vzsim.fakeqmp.user_objects import UserObjects

_QOM_PATH = "/machine/peripheral/"


class BlockLayer:
    """Names and images of one machine."""

    def __init__(self, host: Host, dialect: Dialect, storage: StorageHost) -> None:
        self._dialect = dialect
        self._backends: list[Backend] = []
        self._nodes: dict[str, Node] = {}
        self._made_up_count = 0
        self.objects = UserObjects()
        self._opener = NodeOpener(
            host,
            storage,
            self.objects,
            find=self._find_below,
            make_up_name=self.make_up_name,
        )

    def make_up_name(self) -> str:
        """A node name as QEMU makes them up."""
        self._made_up_count += 1
        return f"#block{self._made_up_count:03}"

    # -- adding --------------------------------------------------------------------------------

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
            node = self._opener.open_path(
                self.make_up_name(),
                path=options["file"],
                driver=options.get("format", "raw"),
                read_only=read_only,
            )
            node.is_direct = node.file_is_direct = options.get("cache") in ("none", "directsync")
            self._nodes[node.name] = node
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
        self._opener.check_options(options)
        name = str(options.get("node-name") or "")
        if name:
            self._opener.check_name(name)
        name = name or self.make_up_name()
        if name in self._nodes or any(node.file_name == name for node in self._nodes.values()):
            raise CommandError(f"Duplicate nodes with node-name='{name}'")
        if any(backend.device_id == name for backend in self._backends):
            raise CommandError(f"node-name={name} is conflicting with a device id")
        node = self._opener.open(name, options, self.add_node)
        self._nodes[name] = node
        return node

    def add_filter(self, source: Node, guard: CopyBeforeWrite) -> Node:
        """The filter that a job puts on top of a node."""
        node = Node(
            name=self.make_up_name(),
            file_name=source.name,
            driver="copy-before-write",
            path=source.path,
            disk=source.disk,
            below=source,
            guards=[guard],
        )
        source.guards.append(guard)
        source.filter_node = node
        self._nodes[node.name] = node
        return node

    def remove_filter(self, source: Node, guard: CopyBeforeWrite) -> None:
        """A job's filter goes with its job."""
        if guard in source.guards:
            source.guards.remove(guard)
        for node in list(self._nodes.values()):
            if node.below is source and guard in node.guards:
                del self._nodes[node.name]
                if source.filter_node is node:
                    source.filter_node = None

    def add_kept_view(self, name: str, source: Node, guard: CopyBeforeWrite) -> None:
        """A node that shows the point in time kept by a filter on ``source``."""
        source.guards.append(guard)
        self._nodes[name] = Node(
            name=name,
            file_name=source.name,
            driver="snapshot-access",
            path=source.path,
            disk=SnapshotDisk(guard),
            read_only=True,
            below=source,
        )

    def remove_kept_view(self, name: str, source: Node, guard: CopyBeforeWrite) -> None:
        """Undo `add_kept_view`."""
        source.guards.remove(guard)
        self._nodes.pop(name, None)

    def guarded_disks(self, names: Container[str]) -> Iterator[tuple[str, Disk | None]]:
        """Name and image of each disk over one of these nodes that now has a filter below."""
        for backend in self._backends:
            node = backend.node
            if node is None or node.name not in names or node.below is None:
                continue
            if node.below.driver == "copy-before-write":
                yield backend.name, node.disk

    def reopen(self, given: Mapping[str, Any]) -> None:
        """``blockdev-reopen``: read-only or not, and another node below.

        Raises: CommandError; nothing has changed then.
        """
        changes = [(self._reopened(options), options) for options in given["options"]]
        for node, options in changes:
            node.read_only = bool(options.get("read-only", False))
            below = options.get("file")
            child = self._nodes.get(below) if isinstance(below, str) else None
            if child is not None and child.name != node.file_name:
                for other in self._nodes.values():
                    if other.name == node.file_name:
                        other.parents.discard(node.name)
                node.file_name, node.below, node.disk = child.name, child, child.disk
                child.parents.add(node.name)

    def _reopened(self, options: Mapping[str, Any]) -> Node:
        if "node-name" not in options:
            raise CommandError("node-name not specified")
        node = self._nodes.get(options["node-name"])
        if node is None:
            raise CommandError(f"Failed to find node with node-name='{options['node-name']}'")
        if options["driver"] != node.driver:
            raise CommandError("Cannot change the option 'driver'")
        below = options.get("file")
        if isinstance(below, str) and below != node.file_name and below not in self._nodes:
            raise CommandError(f"Cannot find device='' nor node-name='{below}'")
        return node

    def attach_device(self, drive: str, qdev: str, kind: str = "scsi-hd") -> None:
        """``-device …,drive=…``: by backend name, else by node name.

        Raises: CommandError.
        """
        for backend in self._backends:
            if backend.device_id == drive:
                backend.qdev, backend.qdev_kind = qdev, kind
                if backend.node is not None:
                    self._use(backend.node, qdev)
                return
        node = self._nodes.get(drive)
        if node is None:
            raise CommandError(f"Property 'drive' can't find value '{drive}'")
        self._use(node, qdev)
        self._backends.append(Backend(device_id="", node=node, qdev=qdev, qdev_kind=kind))

    def _use(self, node: Node, qdev: str) -> None:
        """A guest's device writes and bears no other writer."""
        if not node.read_only:
            self._opener.hold(node, writes=True, alone=True)
        node.roots.add(f"device {qdev}")

    def begin_writing(self, node: Node) -> None:
        """A writable export or a job's target. Raises: CommandError if a lock forbids it."""
        self._opener.hold(node, writes=True, alone=node.driver == "qcow2")

    def end_writing(self, node: Node) -> None:
        """Undo `begin_writing`."""
        if not any(root.startswith("device ") for root in node.roots):
            self._opener.let_go(node)

    # -- finding -------------------------------------------------------------------------------

    def backend(self, device_id: str) -> Backend | None:
        """The backend of that name, if there is one."""
        for backend in self._backends:
            if backend.device_id == device_id and device_id:
                return backend
        return None

    def backend_of(self, name: str) -> Backend | None:
        """The disk that a guest's device, a backend or a node name stands for."""
        qdev = name.removeprefix(_QOM_PATH)
        for backend in self._backends:
            if name and (backend.device_id == name or backend.name == name):
                return backend
            if qdev and backend.qdev == qdev:
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

    def look_up(self, name: str) -> Node:
        """What most block commands name: a backend's node, else a node. Raises: CommandError."""
        node = self._find_below(name)
        if node is None:
            raise CommandError(f"Cannot find device='{name}' nor node-name='{name}'")
        return node

    def _find_below(self, name: str) -> Node | None:
        backend = self.backend(name)
        return backend.node if backend is not None else self._nodes.get(name)

    def default_names(self) -> list[str]:
        """The devices that a backup without a list takes: writable ones with a medium."""
        return [
            backend.name
            for backend in self._backends
            if backend.node is not None and not backend.node.read_only and backend.qdev
        ]

    def disks(self) -> Iterator[tuple[str, Disk]]:
        """Name and image of every disk that a guest sees."""
        for backend in self._backends:
            if backend.node is not None and backend.node.disk is not None and backend.qdev:
                yield backend.name, backend.node.disk

    # -- devices -------------------------------------------------------------------------------

    def device_drive(self, path: str, property_name: str) -> str:
        """``qom-get`` of a device's drive. Raises: CommandError."""
        return self._device(path, property_name).name

    def set_device_drive(self, path: str, property_name: str, value: str) -> None:
        """``qom-set`` of a device's drive: the device goes on over another node.

        Raises: CommandError.
        """
        backend = self._device(path, property_name)
        node = self._nodes.get(value)
        if node is None:
            raise CommandError(f"Cannot find device='' nor node-name='{value}'")
        if backend.node is not None:
            backend.node.roots.discard(f"device {backend.qdev}")
        node.roots.add(f"device {backend.qdev}")
        backend.node = node

    def _device(self, path: str, property_name: str) -> Backend:
        for backend in self._backends:
            if backend.qdev and path == _QOM_PATH + backend.qdev:
                if property_name != "drive":
                    raise CommandError(f"Property '{backend.qdev_kind}.{property_name}' not found")
                return backend
        raise CommandError(f"Device '{path}' not found", "DeviceNotFound")

    # -- removing ------------------------------------------------------------------------------

    def remove_node(self, name: str) -> None:
        """``blockdev-del``.

        Raises: CommandError if there is none of that name, or it is in use.
        """
        node = self._nodes.get(name)
        if node is None:
            raise CommandError(f"Failed to find node with node-name='{name}'")
        if node.roots and node.filter_node is None:
            raise CommandError(f"Node {name} is in use")
        for other in self._nodes.values():
            if other.backing is node:
                raise CommandError(
                    f"Node '{name}' is busy: node is used as backing hd of '{other.name}'"
                )
        if any(other.owns_below and other.below is node for other in self._nodes.values()):
            raise CommandError(f"Node {name} is not owned by the monitor")
        if node.parents:
            raise CommandError(f"Block device {name} is in use")
        for other in self._nodes.values():
            other.parents.discard(name)
        self._opener.close(node)
        self.objects.leave(name)
        del self._nodes[name]
        if node.below is not None:
            if node.owns_below:
                self.remove_node(node.below.name)
        elif node.disk is not None and not self._is_shared(node.disk):
            node.disk.close()

    def _is_shared(self, disk: Disk) -> bool:
        return any(other.disk is disk for other in self._nodes.values())

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
            self._opener.close(backend.node)
            if backend.node.disk is not None:
                backend.node.disk.close()

    def release(self, user: str) -> None:
        """Nodes that this user held are free again."""
        for node in self._nodes.values():
            node.parents.discard(user)

    def close(self) -> None:
        """Close every image."""
        for node in self._nodes.values():
            self._opener.close(node)
        for disk in {id(node.disk): node.disk for node in self._nodes.values()}.values():
            if disk is not None:
                disk.close()

    # -- replies -------------------------------------------------------------------------------

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
                reply["inserted"] = describe_node(backend.node.top, self._dialect)
            if backend.removable:
                reply["tray_open"] = False
            replies.append(reply)
        return replies

    def describe_nodes(self, *, flat: bool = False) -> list[dict[str, Any]]:
        """Reply of ``query-named-block-nodes``: format nodes, each followed by its file."""
        replies: list[dict[str, Any]] = []
        for node in reversed(self._nodes.values()):
            replies.append(describe_node(node, self._dialect))
            if node.file_name and node.file_name not in self._nodes:
                replies.append(describe_file(node, self._dialect))
        for reply in replies if flat else ():
            reply["image"].pop("backing-image", None)
            reply["backing_file_depth"] = 0
        return replies
