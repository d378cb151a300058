"""What lists of groups and backups say of each.

Owns the members of the JSON. Source: PBS formats, section 11.
"""

from __future__ import annotations

from typing import Any

from vzdump_qemu.errors import PbsError
from vzdump_qemu.formats.pbs.manifest import Manifest
from vzdump_qemu.formats.pbs.names import CLIENT_LOG_NAME, MANIFEST_NAME, BackupRef
from vzsim.fakepbs.datastore import Datastore, Place


def group_facts(datastore: Datastore, place: Place) -> dict[str, Any]:
    """A group as ``GET groups`` lists it."""
    finished = [each for each in datastore.backups(place) if datastore.is_finished(place, each)]
    facts: dict[str, Any] = {
        "backup-type": place.group.backup_type.value,
        "backup-id": place.group.backup_id,
        "backup-count": len(datastore.backups(place)),
        "last-backup": finished[-1].backup_time_s if finished else 0,
        "files": datastore.backup_files(place, finished[-1]) if finished else [],
        "owner": datastore.owner(place),
    }
    notes = datastore.group_notes(place)
    return {**facts, "comment": notes.partition("\n")[0]} if notes else facts


def backup_facts(datastore: Datastore, place: Place, backup: BackupRef) -> dict[str, Any]:
    """A backup as ``GET snapshots`` lists it; an unfinished one has fewer members."""
    facts: dict[str, Any] = {
        "backup-type": place.group.backup_type.value,
        "backup-id": place.group.backup_id,
        "backup-time": backup.backup_time_s,
        "owner": datastore.owner(place),
        "protected": datastore.is_protected(place, backup),
    }
    names = datastore.backup_files(place, backup)
    try:
        manifest = datastore.manifest(place, backup)
    except (OSError, PbsError):
        return {**facts, "files": [{"filename": name} for name in names]}
    facts["files"] = _file_facts(datastore, place, backup, manifest=manifest)
    facts["size"] = sum(each["size"] for each in facts["files"])
    unprotected = manifest.unprotected
    if unprotected.notes:
        facts["comment"] = unprotected.notes.partition("\n")[0]
    if unprotected.key_fingerprint is not None:
        facts["fingerprint"] = str(unprotected.key_fingerprint)
    if unprotected.verification is not None:
        facts["verification"] = {
            "state": unprotected.verification.state.value,
            "upid": unprotected.verification.upid,
        }
    return facts


def _file_facts(
    datastore: Datastore, place: Place, backup: BackupRef, *, manifest: Manifest
) -> list[dict[str, Any]]:
    listed = [
        {
            "filename": entry.file_name,
            "crypt-mode": entry.crypt_mode.value,
            "size": entry.size_bytes,
        }
        for entry in manifest.entries
    ]
    for name in (CLIENT_LOG_NAME, MANIFEST_NAME):
        facts = datastore.files.facts(f"{place.backup_path(backup)}/{name}")
        if facts is not None:
            crypt_mode = {} if name == CLIENT_LOG_NAME else {"crypt-mode": "none"}
            listed.append({"filename": name, **crypt_mode, "size": facts.size_bytes})
    return listed
