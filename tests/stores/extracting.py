"""Extraction of archives, with the report that only archives have."""

from __future__ import annotations

from vzdump_qemu.stores.archive_file import ArchiveFile
from vzdump_qemu.stores.archive_reading import VerifyReport, verify_archive
from vzdump_qemu.stores.extraction import extract_backup


def extract_archive(
    path: str, directory: str, *, disks: frozenset[str] | None = None
) -> VerifyReport:
    """Extract an archive and tell what verifying it tells."""
    extract_backup(ArchiveFile(path), directory, disks=disks)
    return verify_archive(path)
