"""The calls about one datastore on HTTP/1.1: lists, notes, protection, prune, logs, upkeep.

Owns which call exists, which privilege it needs and what it answers; the work is the datastore's.
Source: PBS formats, section 11.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from vzdump_qemu.errors import PbsError
from vzdump_qemu.formats.pbs.layout import UPLOAD_BYTES_MAX
from vzdump_qemu.formats.pbs.names import Namespace
from vzdump_qemu.units import TIB
from vzsim.fakepbs.accounts import AUDIT, BACKUP, MODIFY, PRUNE, READ, VERIFY, Accounts
from vzsim.fakepbs.admission import is_owner, privilege_path, read_backup, read_place
from vzsim.fakepbs.backup_listing import backup_facts, group_facts
from vzsim.fakepbs.chunk_store import Collected
from vzsim.fakepbs.datastore import Datastore, Place
from vzsim.fakepbs.parameters import BACKUP as BACKUP_PARAMETERS
from vzsim.fakepbs.parameters import (
    BACKUP_TYPE,
    FILE_NAME,
    GROUP,
    NS,
    Boolean,
    Integer,
    Parameter,
    Text,
    check_parameters,
)
from vzsim.fakepbs.requests import ApiError, Reply, Request, data_reply, file_reply
from vzsim.fakepbs.retention import KEEP_NAMES, KeptBackup, Mark, mark_backups
from vzsim.fakepbs.verification import make_upid, verify_backup

# What a disk without a limit claims to hold.
_DISK_BYTES: Final = 10 * TIB
_ANY_TEXT: Final = Text(".*", 65536)
_FILTER: Final = (
    NS,
    Parameter("backup-type", BACKUP_TYPE, is_optional=True),
    Parameter("backup-id", GROUP[1].shape, is_optional=True),
)
_NOTES: Final = (NS, *BACKUP_PARAMETERS, Parameter("notes", _ANY_TEXT))
_GROUP_NOTES: Final = (NS, *GROUP, Parameter("notes", _ANY_TEXT))
_PRUNE: Final = (
    NS,
    *GROUP,
    *(Parameter(name, Integer(1, 1 << 31), is_optional=True) for name in KEEP_NAMES),
    Parameter("dry-run", Boolean(), is_optional=True),
    Parameter("use-task", Boolean(), is_optional=True),
)
_NEW_NAMESPACE: Final = (
    Parameter("name", FILE_NAME),
    Parameter("parent", NS.shape, is_optional=True),
)


class GarbageCollector(Protocol):
    """Collects with what the server knows of running backups."""

    def __call__(self, datastore: Datastore, /) -> Collected: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One call: on which datastore, by whom, with what."""

    datastore: Datastore
    auth_id: str
    values: Mapping[str, Any]
    request: Request


_Call = Callable[[_Asked], Reply]


class StoreCalls:
    """Calls on the datastores of one server."""

    def __init__(
        self,
        accounts: Accounts,
        datastores: Mapping[str, Datastore],
        collect: GarbageCollector,
    ) -> None:
        self._accounts = accounts
        self._datastores = datastores
        self._collect = collect
        one = (NS, *BACKUP_PARAMETERS)
        group = (NS, *GROUP)
        self._calls: dict[str, tuple[tuple[Parameter, ...], _Call]] = {
            "GET status": ((), self._tell_status),
            "GET namespace": ((Parameter("parent", NS.shape, is_optional=True),), self._list_ns),
            "POST namespace": (_NEW_NAMESPACE, self._make_namespace),
            "GET groups": ((NS,), self._list_groups),
            "DELETE groups": (group, self._remove_group),
            "GET group-notes": (group, self._tell_group_notes),
            "PUT group-notes": (_GROUP_NOTES, self._set_group_notes),
            "GET snapshots": (_FILTER, self._list_backups),
            "DELETE snapshots": (one, self._remove_backup),
            "GET files": (one, self._list_files),
            "GET notes": (one, self._tell_notes),
            "PUT notes": (_NOTES, self._set_notes),
            "GET protected": (one, self._tell_protected),
            "PUT protected": ((*one, Parameter("protected", Boolean())), self._set_protected),
            "POST prune": (_PRUNE, self._prune),
            "GET download": ((*one, Parameter("file-name", FILE_NAME)), self._download),
            "POST upload-backup-log": (one, self._take_log),
            "POST verify": (one, self._verify),
            "POST gc": ((), self._collect_garbage),
        }

    async def answer(
        self, request: Request, auth_id: str, *, store: str, call: str
    ) -> Reply | None:
        """Reply to a call, None if there is no such call. Raises: ApiError."""
        found = self._calls.get(f"{request.method} {call}")
        if found is None:
            return None
        schema, act = found
        values = check_parameters(request, schema, is_upload=call == "upload-backup-log")
        if not self._accounts.privileges_on(auth_id, f"/datastore/{store}"):
            raise _forbidden()
        datastore = self._datastores.get(store)
        if datastore is None:
            raise ApiError(f"no such datastore '{store}'")
        try:
            return act(_Asked(datastore=datastore, auth_id=auth_id, values=values, request=request))
        except PbsError as error:
            raise ApiError(error.message) from error

    def _may(self, asked: _Asked, place: Place, *freely: str, owned: str = "") -> None:
        """Raise unless a privilege allows it, or another one does on a group of one's own."""
        path = privilege_path(asked.datastore.name, place)
        granted = self._accounts.privileges_on(asked.auth_id, path)
        if granted.intersection(freely):
            return
        if owned not in granted:
            raise _forbidden()
        owner = asked.datastore.owner(place)
        if owner is not None and not is_owner(asked.auth_id, owner):
            raise ApiError(f"backup owner check failed ({asked.auth_id} != {owner})")

    def _can(self, asked: _Asked, place: Place) -> bool:
        try:
            self._may(asked, place, AUDIT, owned=BACKUP)
        except ApiError:
            return False
        return True

    # -- the datastore ------------------------------------------------------------------------

    def _tell_status(self, asked: _Asked) -> Reply:
        used_bytes = asked.datastore.chunks.used_bytes()
        free_bytes = asked.datastore.files.free_bytes
        if free_bytes is None:
            free_bytes = _DISK_BYTES - used_bytes
        total_bytes = used_bytes + free_bytes
        return data_reply({"total": total_bytes, "used": used_bytes, "avail": free_bytes})

    def _list_ns(self, asked: _Asked) -> Reply:
        above = Namespace.parse(asked.values.get("parent", ""))
        _check_namespace(asked.datastore, above)
        return data_reply([{"ns": str(each)} for each in asked.datastore.namespaces(above)])

    def _make_namespace(self, asked: _Asked) -> Reply:
        path = f"/datastore/{asked.datastore.name}"
        if MODIFY not in self._accounts.privileges_on(asked.auth_id, path):
            raise _forbidden()
        above = Namespace.parse(asked.values.get("parent", ""))
        namespace = Namespace(parts=(*above.parts, asked.values["name"]))
        if asked.datastore.has_namespace(namespace):
            raise ApiError(f"namespace '{namespace}' already exists")
        asked.datastore.make_namespace(namespace)
        return data_reply(str(namespace))

    def _collect_garbage(self, asked: _Asked) -> Reply:
        path = f"/datastore/{asked.datastore.name}"
        if MODIFY not in self._accounts.privileges_on(asked.auth_id, path):
            raise _forbidden()
        self._collect(asked.datastore)
        return data_reply(make_upid("garbage_collection", int(asked.datastore.now_s())))

    # -- groups -------------------------------------------------------------------------------

    def _list_groups(self, asked: _Asked) -> Reply:
        namespace = Namespace.parse(asked.values.get("ns", ""))
        _check_namespace(asked.datastore, namespace)
        places = [each for each in asked.datastore.places(namespace) if self._can(asked, each)]
        return data_reply([group_facts(asked.datastore, place) for place in places])

    def _remove_group(self, asked: _Asked) -> Reply:
        place = read_place(asked.values)
        self._may(asked, place, MODIFY, owned=PRUNE)
        asked.datastore.remove_group(place)
        return data_reply(None)

    def _tell_group_notes(self, asked: _Asked) -> Reply:
        place = read_place(asked.values)
        self._may(asked, place, AUDIT, owned=BACKUP)
        return data_reply(asked.datastore.group_notes(place))

    def _set_group_notes(self, asked: _Asked) -> Reply:
        place = read_place(asked.values)
        self._may(asked, place, MODIFY, owned=BACKUP)
        asked.datastore.set_group_notes(place, asked.values["notes"])
        return data_reply(None)

    def _prune(self, asked: _Asked) -> Reply:
        place = read_place(asked.values)
        self._may(asked, place, MODIFY, owned=PRUNE)
        datastore = asked.datastore
        backups = datastore.backups(place)
        marks = mark_backups(
            [
                KeptBackup(
                    backup_time_s=each.backup_time_s,
                    is_finished=datastore.is_finished(place, each),
                    is_protected=datastore.is_protected(place, each),
                )
                for each in backups
            ],
            {name: asked.values.get(name, 0) for name in KEEP_NAMES},
        )
        told = []
        for backup, mark in sorted(
            zip(backups, marks, strict=True), key=lambda pair: pair[0].backup_time_s
        ):
            told.append(
                {
                    "backup-type": place.group.backup_type.value,
                    "backup-id": place.group.backup_id,
                    "backup-time": backup.backup_time_s,
                    "keep": mark is not Mark.REMOVE,
                    "protected": mark is Mark.PROTECTED,
                    **({"ns": str(place.namespace)} if not place.namespace.is_root else {}),
                }
            )
            if mark is Mark.REMOVE and not asked.values.get("dry-run", False):
                datastore.remove_backup(place, backup)
        return data_reply(told)

    # -- backups ------------------------------------------------------------------------------

    def _list_backups(self, asked: _Asked) -> Reply:
        namespace = Namespace.parse(asked.values.get("ns", ""))
        _check_namespace(asked.datastore, namespace)
        wanted_type, wanted_id = asked.values.get("backup-type"), asked.values.get("backup-id")
        found = []
        for place in asked.datastore.places(namespace):
            is_wanted = wanted_type in (None, place.group.backup_type.value)
            if is_wanted and wanted_id in (None, place.group.backup_id) and self._can(asked, place):
                for backup in asked.datastore.backups(place):
                    found.append(backup_facts(asked.datastore, place, backup))
        return data_reply(found)

    def _remove_backup(self, asked: _Asked) -> Reply:
        place, backup = read_backup(asked.values)
        self._may(asked, place, MODIFY, owned=PRUNE)
        asked.datastore.remove_backup(place, backup)
        return data_reply(None)

    def _list_files(self, asked: _Asked) -> Reply:
        place, backup = read_backup(asked.values)
        self._may(asked, place, AUDIT, READ, owned=BACKUP)
        asked.datastore.check_backup(place, backup)
        return data_reply(backup_facts(asked.datastore, place, backup)["files"])

    def _tell_notes(self, asked: _Asked) -> Reply:
        place, backup = read_backup(asked.values)
        self._may(asked, place, AUDIT, owned=BACKUP)
        asked.datastore.check_backup(place, backup)
        return data_reply(asked.datastore.manifest(place, backup).unprotected.notes or "")

    def _set_notes(self, asked: _Asked) -> Reply:
        place, backup = read_backup(asked.values)
        self._may(asked, place, MODIFY, owned=BACKUP)
        asked.datastore.check_backup(place, backup)
        notes = asked.values["notes"]
        asked.datastore.change_unprotected(place, backup, lambda part: replace(part, notes=notes))
        return data_reply(None)

    def _tell_protected(self, asked: _Asked) -> Reply:
        place, backup = read_backup(asked.values)
        self._may(asked, place, AUDIT, owned=BACKUP)
        asked.datastore.check_backup(place, backup)
        return data_reply(asked.datastore.is_protected(place, backup))

    def _set_protected(self, asked: _Asked) -> Reply:
        place, backup = read_backup(asked.values)
        self._may(asked, place, MODIFY, owned=BACKUP)
        asked.datastore.check_backup(place, backup)
        is_protected = asked.values["protected"]
        asked.datastore.set_protected(place, backup, is_protected=is_protected)
        return data_reply(None)

    def _download(self, asked: _Asked) -> Reply:
        place, backup = read_backup(asked.values)
        self._may(asked, place, READ, owned=BACKUP)
        asked.datastore.check_backup(place, backup)
        name = asked.values["file-name"]
        try:
            return file_reply(asked.datastore.read_file(place, backup, name))
        except OSError as error:
            path = f"{asked.datastore.root}/{place.backup_path(backup)}/{name}"
            raise ApiError(f'open file "{path}" failed - not found', status=404) from error

    def _take_log(self, asked: _Asked) -> Reply:
        place, backup = read_backup(asked.values)
        self._may(asked, place, owned=BACKUP)
        if asked.request.body_bytes > UPLOAD_BYTES_MAX:
            raise ApiError("Request body too large")
        asked.datastore.add_client_log(place, backup, asked.request.body)
        return data_reply(None)

    def _verify(self, asked: _Asked) -> Reply:
        place, backup = read_backup(asked.values)
        self._may(asked, place, VERIFY, owned=BACKUP)
        asked.datastore.check_backup(place, backup)
        verify_backup(asked.datastore, place, backup)
        return data_reply(make_upid("verify_snapshot", int(asked.datastore.now_s())))


def _forbidden() -> ApiError:
    return ApiError("permission check failed", status=403, is_about_credentials=True)


def _check_namespace(datastore: Datastore, namespace: Namespace) -> None:
    if not datastore.has_namespace(namespace):
        raise ApiError("namespace not found", status=404)
