"""Calls to a server that are no backup and no restore.

Owns listing, notes, protection, pruning, logs and status of one datastore and namespace. Source:
PBS formats, section 11.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from vzdump_qemu.errors import PbsError
from vzdump_qemu.formats.pbs import (
    BackupGroup,
    BackupRef,
    BlobEncoder,
    EncryptionKey,
    Fingerprint,
    Namespace,
)
from vzdump_qemu.formats.pbs.json_text import canonical_json
from vzdump_qemu.formats.pbs.names import parse_backup_type
from vzdump_qemu.stores.pbs.chunk_workers import ChunkEncoder
from vzdump_qemu.stores.pbs.endpoint import PbsEndpoint
from vzdump_qemu.stores.pbs.http1 import BINARY_TYPE, JSON_TYPE, Http1Request


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedFile:
    """A file of a listed backup; the size is None where the server does not tell."""

    file_name: str
    size_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedBackup:
    """A backup as its server lists it.

    Attributes:
        size_bytes: of all files; None while there is no manifest: it is not finished.
        notes: first line of the notes.
        verify_state: ``ok``, ``failed`` or empty if it was never verified.
        key_fingerprint: of the key it was made with.
    """

    backup: BackupRef
    files: tuple[ListedFile, ...]
    size_bytes: int | None
    owner: str
    notes: str
    is_protected: bool
    verify_state: str
    key_fingerprint: Fingerprint | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepCounts:
    """What pruning keeps, by the names of the server; None leaves a rule out.

    Raises:
        PbsError: no rule, which would keep everything, or a count under 1.
    """

    last: int | None = None
    hourly: int | None = None
    daily: int | None = None
    weekly: int | None = None
    monthly: int | None = None
    yearly: int | None = None

    def __post_init__(self) -> None:
        counts = self.parameters().values()
        if not counts or any(count < 1 for count in counts):
            raise PbsError("pruning needs at least one count, each of 1 or more")

    def parameters(self) -> Mapping[str, int]:
        """As the server takes them."""
        rules = {
            "keep-last": self.last, "keep-hourly": self.hourly, "keep-daily": self.daily,
            "keep-weekly": self.weekly, "keep-monthly": self.monthly, "keep-yearly": self.yearly,
        }  # fmt: skip
        return {name: count for name, count in rules.items() if count is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedBackup:
    """What pruning did, or would do, with one backup.

    Attributes:
        is_protected: then it stays, whatever the rule says; False from servers that do not tell.
    """

    backup: BackupRef
    is_kept: bool
    is_protected: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DatastoreStatus:
    """Room in a datastore."""

    total_bytes: int
    used_bytes: int
    available_bytes: int


class DatastoreCalls:
    """Management of one namespace of a datastore.

    Every method raises PbsRefused in the server's words, PbsUnreachable, or PbsError for an
    answer that is none.
    """

    def __init__(self, endpoint: PbsEndpoint, namespace: Namespace) -> None:
        self._endpoint = endpoint
        self._namespace = namespace
        self._base: Final = f"/api2/json/admin/datastore/{endpoint.repository.datastore}"

    async def version(self) -> str:
        """Version of the server, as ``4.2.3``."""
        request = Http1Request(method="GET", path="/api2/json/version")
        found = await self._endpoint.call(request, _VersionJson, what="version")
        return f"{found.version}.{found.release}" if found.release else found.version

    async def status(self) -> DatastoreStatus:
        """Room in the datastore."""
        found = await self._get("status", (), _StatusJson, what="status")
        return DatastoreStatus(
            total_bytes=found.total, used_bytes=found.used, available_bytes=found.avail
        )

    async def list_backups(self, group: BackupGroup | None = None) -> Sequence[ListedBackup]:
        """All backups, or those of a group; oldest first, group by group."""
        query = self._place()
        if group is not None:
            query += _group_query(group)
        found = await self._get("snapshots", query, list[_ListedJson], what="list of backups")
        listed = [_listed(one) for one in found]
        return sorted(
            listed, key=lambda one: (one.backup.backup_group.path, one.backup.backup_time_s)
        )

    async def read_notes(self, backup: BackupRef) -> str:
        """The notes of a backup."""
        notes: str | None = await self._get("notes", self._of(backup), str | None, what="notes")
        return notes or ""

    async def write_notes(self, backup: BackupRef, notes: str) -> None:
        """Replace the notes of a backup."""
        await self._change("PUT", "notes", backup, {"notes": notes})

    async def set_protected(self, backup: BackupRef, *, is_protected: bool) -> None:
        """Keep a backup from being pruned or removed, or no more."""
        await self._change("PUT", "protected", backup, {"protected": is_protected})

    async def prune(
        self, group: BackupGroup, keep: KeepCounts, *, is_dry_run: bool = False
    ) -> Sequence[PrunedBackup]:
        """Remove the backups of a group that no rule keeps."""
        value: dict[str, Any] = {**dict(_group_query(group)), **keep.parameters()}
        value |= dict(self._place())
        if is_dry_run:
            value["dry-run"] = True
        request = self._json("POST", "prune", value)
        found = await self._endpoint.call(request, list[_PrunedJson], what="result of pruning")
        return [
            PrunedBackup(backup=_backup(one), is_kept=one.keep, is_protected=one.protected)
            for one in found
        ]

    async def forget(self, backup: BackupRef) -> None:
        """Remove a backup."""
        request = Http1Request(
            method="DELETE", path=f"{self._base}/snapshots", query=self._of(backup)
        )
        await self._endpoint.call(request, object, what="answer")

    async def upload_log(
        self, backup: BackupRef, log: bytes, *, key: EncryptionKey | None = None
    ) -> None:
        """Store the client's log with a backup; a server takes one only once.

        Args:
            key: encrypts the log if given.
        """
        if key is None:
            encoded = BlobEncoder().encode(log).to_bytes()
        else:
            encoded = ChunkEncoder(key=key).encode(memoryview(log)).to_bytes()
        request = Http1Request(
            method="POST",
            path=f"{self._base}/upload-backup-log",
            query=self._of(backup),
            body=encoded,
            content_type=BINARY_TYPE,
        )
        await self._endpoint.call(request, object, what="answer")

    async def _get(
        self, call: str, query: Sequence[tuple[str, str]], shape: Any, *, what: str
    ) -> Any:
        request = Http1Request(method="GET", path=f"{self._base}/{call}", query=query)
        return await self._endpoint.call(request, shape, what=what)

    async def _change(
        self, method: str, call: str, backup: BackupRef, value: Mapping[str, Any]
    ) -> None:
        named = dict(self._of(backup)) | {"backup-time": backup.backup_time_s}
        request = self._json(method, call, {**named, **value})
        await self._endpoint.call(request, object, what="answer")

    def _json(self, method: str, call: str, value: Mapping[str, Any]) -> Http1Request:
        return Http1Request(
            method=method,
            path=f"{self._base}/{call}",
            body=canonical_json(value),
            content_type=JSON_TYPE,
        )

    def _place(self) -> list[tuple[str, str]]:
        return [] if self._namespace.is_root else [("ns", str(self._namespace))]

    def _of(self, backup: BackupRef) -> list[tuple[str, str]]:
        return [
            *_group_query(backup.backup_group),
            ("backup-time", str(backup.backup_time_s)),
            *self._place(),
        ]


class _VersionJson(msgspec.Struct):
    version: str
    release: str = ""


class _StatusJson(msgspec.Struct):
    total: int
    used: int
    avail: int


class _FileJson(msgspec.Struct):
    filename: str
    size: int | None = None


class _VerificationJson(msgspec.Struct):
    state: str = ""


class _BackupJson(msgspec.Struct, rename="kebab"):
    backup_type: str
    backup_id: str
    backup_time: int


class _PrunedJson(_BackupJson, rename="kebab"):
    keep: bool
    protected: bool = False


class _ListedJson(_BackupJson, rename="kebab"):
    files: list[_FileJson | str] = []
    size: int | None = None
    owner: str | None = None
    comment: str | None = None
    protected: bool = False
    verification: _VerificationJson | None = None
    fingerprint: str | None = None


def _group_query(group: BackupGroup) -> list[tuple[str, str]]:
    return [("backup-type", group.backup_type.value), ("backup-id", group.backup_id)]


def _backup(found: _BackupJson) -> BackupRef:
    return BackupRef(
        backup_group=BackupGroup(
            backup_type=parse_backup_type(found.backup_type), backup_id=found.backup_id
        ),
        backup_time_s=found.backup_time,
    )


def _listed(found: _ListedJson) -> ListedBackup:
    return ListedBackup(
        backup=_backup(found),
        files=tuple(
            ListedFile(file_name=one, size_bytes=None)
            if isinstance(one, str)
            else ListedFile(file_name=one.filename, size_bytes=one.size)
            for one in found.files
        ),
        size_bytes=found.size,
        owner=found.owner or "",
        notes=found.comment or "",
        is_protected=found.protected,
        verify_state=found.verification.state if found.verification else "",
        key_fingerprint=Fingerprint.parse(found.fingerprint) if found.fingerprint else None,
    )
