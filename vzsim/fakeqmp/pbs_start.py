"""The start of a backup to a server: arguments, connection, bitmaps, registered disks.

Owns everything between the device list and the jobs, in the order of the real build, because it
decides what an early failure leaves. Source: PVE interface, sections 2, 6 and 9.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from vzdump_qemu.formats.pbs.layout import CHUNK_BYTES
from vzdump_qemu.units import ceil_div
from vzsim.fakeqmp.bitmaps import Bitmap
from vzsim.fakeqmp.nodes import Node
from vzsim.fakeqmp.outside import Host
from vzsim.fakeqmp.pbs_output import PbsTarget
from vzsim.fakeqmp.pbs_port import PbsFailed, PbsLibrary, PbsRequest, PbsWriter
from vzsim.fakeqmp.schema import CommandError

BITMAP_NAME = "pbs-incremental-dirty-bitmap"
_CONFIG_NAMES = (("config-file", "qemu-server.conf"), ("firewall-file", "fw.conf"))
_REQUIRED = ("password", "backup-id", "backup-time")
# More chunks than this under way only cost memory.
_CHUNK_COUNT_MAX = 16

_T = TypeVar("_T")


class PbsStart:
    """One backup from its arguments to the moment before its jobs.

    Args:
        devices: names and nodes, in the order of the device list.
        index_csums: what this process sent last, by device; see `PbsTarget`.
    Raises: CommandError.
    """

    def __init__(
        self,
        library: PbsLibrary | None,
        host: Host,
        arguments: Mapping[str, Any],
        devices: Sequence[tuple[str, Node]],
        index_csums: dict[str, bytes],
    ) -> None:
        for name in _REQUIRED:
            if name not in arguments:
                raise CommandError(f"missing parameter '{name}'")
        if library is None:
            # What a build says whose library is a stub.
            raise CommandError("proxmox_backup_new failed: (null)")
        self._host = host
        self._arguments = arguments
        self._devices = devices
        self._index_csums = index_csums
        self._library = library
        self._writer: PbsWriter = self._open_writer(library)
        self._taken: list[tuple[Bitmap, set[int]]] = []
        self.bitmap_infos: list[dict[str, Any]] = []

    @property
    def target(self) -> PbsTarget:
        """What the run writes to."""
        worker_count = self._arguments.get("max-workers", _CHUNK_COUNT_MAX)
        return PbsTarget(
            library=self._library,
            writer=self._writer,
            device_ids=[name for name, _ in self._devices],
            chunk_count_max=min(worker_count, _CHUNK_COUNT_MAX),
            index_csums=self._index_csums,
        )

    @property
    def dirty_bytes(self) -> int:
        """What has to be looked at, as the bitmaps said when the disks were registered."""
        return sum(info["dirty"] for info in self.bitmap_infos)

    async def connect(self) -> None:
        """Everything that needs the server. Raises: CommandError; then nothing is left there."""
        try:
            await self._tell("backup connect", self._writer.connect())
            for name, node in self._devices:
                await self._register(name, node)
            await self._send_configs()
        except CommandError:
            self.abort()
            raise

    def abort(self) -> None:
        """End the connection."""
        self._writer.abort()

    def clean_chunks(self, node: Node) -> set[int]:
        """Chunks that need not be read, as the bitmap says now; it begins anew.

        The jobs own what was marked until `give_back`.
        """
        if not self._uses_bitmaps:
            return set()
        bitmap = node.bitmaps[BITMAP_NAME]
        taken, bitmap.dirty, bitmap.busy = bitmap.dirty, set(), True
        self._taken.append((bitmap, taken))
        return set(range(ceil_div(bitmap.size_bytes, CHUNK_BYTES))) - taken

    def give_back(self, *, succeeded: bool) -> None:
        """The jobs have ended; what they did not save is marked again. Once only counts."""
        for bitmap, taken in self._taken:
            bitmap.busy = False
            if not succeeded:
                bitmap.dirty |= taken
        self._taken.clear()

    @property
    def _uses_bitmaps(self) -> bool:
        return bool(self._arguments.get("use-dirty-bitmap", False))

    def _open_writer(self, library: PbsLibrary) -> PbsWriter:
        given = self._arguments
        try:
            return library.open(
                PbsRequest(
                    repository=given["backup-file"],
                    backup_id=given["backup-id"],
                    backup_time_s=given["backup-time"],
                    namespace=given.get("backup-ns", ""),
                    password=given["password"],
                    fingerprint=given.get("fingerprint", ""),
                    key_file=self._read_key("keyfile"),
                    key_password=given.get("key-password"),
                    master_pem=self._read_key("master-keyfile"),
                    compress=given.get("compress", True),
                    encrypt=given.get("encrypt", True),
                )
            )
        except PbsFailed as error:
            raise CommandError(f"proxmox_backup_new failed: {error}") from error

    def _read_key(self, argument: str) -> bytes | None:
        path = self._arguments.get(argument)
        if path is None:
            return None
        try:
            return self._host.read_file(path)
        except OSError as error:
            raise PbsFailed(f"unable to read {path!r} - {error.strerror}") from error

    async def _register(self, name: str, node: Node) -> None:
        bitmap = node.bitmaps.get(BITMAP_NAME)
        base_csum, action = b"", "not-used"
        if not self._uses_bitmaps:
            if bitmap is not None:
                # What is sent now is no longer what it counts from.
                del node.bitmaps[BITMAP_NAME]
                action = "not-used-removed"
        elif bitmap is None:
            bitmap = node.bitmaps[BITMAP_NAME] = Bitmap(
                name=BITMAP_NAME, size_bytes=node.size_bytes, granularity_bytes=CHUNK_BYTES
            )
            action = "new"
        else:
            base_csum, action = self._index_csums.get(name, b""), "invalid"
        registering = self._writer.register(name, node.size_bytes, base_csum=base_csum)
        is_based = await self._tell("backup register image", registering)
        dirty_bytes = node.size_bytes
        if bitmap is not None and is_based:
            action = "used"
            dirty_bytes = min(len(bitmap.dirty) * CHUNK_BYTES, node.size_bytes)
        elif bitmap is not None:
            bitmap.dirty = set(range(ceil_div(node.size_bytes, CHUNK_BYTES)))
        self.bitmap_infos.append(
            {"drive": name, "action": action, "size": node.size_bytes, "dirty": dirty_bytes}
        )

    async def _send_configs(self) -> None:
        for argument, stored_name in _CONFIG_NAMES:
            path = self._arguments.get(argument)
            if path is None:
                continue
            try:
                content = self._host.read_file(path)
            except OSError as error:
                raise CommandError(f"unable to read file '{path}'") from error
            await self._tell(
                f"backup add_config {stored_name}", self._writer.add_config(stored_name, content)
            )

    @staticmethod
    async def _tell(what: str, work: Coroutine[Any, Any, _T]) -> _T:
        try:
            return await work
        except PbsFailed as error:
            raise CommandError(f"{what} failed: {error}") from error
