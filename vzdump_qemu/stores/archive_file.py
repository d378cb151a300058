"""A VMA archive in a file as a `StoredBackup`.

Owns what the verbs show of archives; reading is `archive_reading`'s. Source: VMA format,
sections 6 to 8.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from vzdump_qemu.formats.vma import VmaDevice, VmaHeader
from vzdump_qemu.stores.archive_reading import (
    VerifyReport,
    list_archive,
    restore_archive,
    verify_archive,
)
from vzdump_qemu.stores.archive_source import Compression
from vzdump_qemu.stores.stored_backup import (
    BackupContents,
    BackupProof,
    BackupSummary,
    OpenTarget,
    ProvedDisk,
    StoredConfig,
    StoredDisk,
    find_config,
)

_FIREWALL_NAME = "qemu-server.fw"
_VMA_BLOCK_BYTES = 4096


class ArchiveFile:
    """`StoredBackup` in a file; ``-`` is standard input.

    Every method raises VmaError for an archive that is damaged or not whole.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    @property
    def name(self) -> str:
        """The path."""
        return self._path

    def summarize(self) -> BackupSummary:
        """As the interface says, by the header alone."""
        found = list_archive(self._path)
        return _summary(found.header, found.compression)

    def read_config(self, name: str) -> bytes:
        """As the interface says."""
        return find_config(list_archive(self._path).header.configs, name)

    def verify(self) -> BackupProof:
        """As the interface says: every cluster of every disk is there once, all sums are right."""
        return _proof(verify_archive(self._path))

    def restore(
        self, open_target: OpenTarget, *, on_contents: Callable[[BackupContents], None]
    ) -> BackupProof:
        """As the interface says; the archive is checked as a whole in any case."""

        def take_header(header: VmaHeader) -> None:
            on_contents(
                BackupContents(
                    configs=header.configs,
                    disks=tuple(_disk(device) for device in header.devices),
                    firewall_name=_FIREWALL_NAME,
                )
            )

        report = restore_archive(
            self._path, lambda device: open_target(_disk(device)), on_header=take_header
        )
        return _proof(report)


def _disk(device: VmaDevice) -> StoredDisk:
    return StoredDisk(
        name=device.name,
        size_bytes=device.size_bytes,
        file_name=device.file_name,
        is_vmstate=device.is_vmstate,
    )


def _summary(header: VmaHeader, compression: Compression) -> BackupSummary:
    try:
        created = datetime.fromtimestamp(header.ctime_s, UTC).isoformat()
    except (OverflowError, ValueError, OSError):
        created = str(header.ctime_s)
    return BackupSummary(
        facts={
            "uuid": str(uuid.UUID(bytes=header.uuid)),
            "created": created,
            "compression": compression.value,
        },
        configs=tuple(
            StoredConfig(name=config.name, size_bytes=len(config.data)) for config in header.configs
        ),
        disks=tuple(_disk(device) for device in header.devices),
    )


def _proof(report: VerifyReport) -> BackupProof:
    return BackupProof(
        summary=_summary(report.header, report.compression),
        disks=tuple(
            ProvedDisk(
                disk=_disk(tally.device),
                figures={
                    "vma_cluster_count": tally.vma_cluster_count,
                    "stored_bytes": tally.stored_block_count * _VMA_BLOCK_BYTES,
                },
            )
            for tally in report.tallies
        ),
        figures={"stream_bytes": report.stream_bytes, "extent_count": report.extent_count},
    )
