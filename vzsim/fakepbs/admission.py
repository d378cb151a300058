"""What must hold before a connection is upgraded, in the server's order and words.

Owns the checks of both protocols, the locks they take and the directory of a new backup.
Source: PBS formats, sections 3 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vzdump_qemu.errors import PbsError
from vzdump_qemu.formats.pbs.manifest import Verification, VerifyState
from vzdump_qemu.formats.pbs.names import (
    BackupGroup,
    BackupRef,
    Namespace,
    parse_backup_type,
)
from vzsim.fakepbs.accounts import BACKUP, READ, Accounts
from vzsim.fakepbs.backup_session import BackupSession, BackupStart, SessionTools
from vzsim.fakepbs.datastore import Datastore, Place
from vzsim.fakepbs.faults import FaultKind
from vzsim.fakepbs.locks import Lock
from vzsim.fakepbs.parameters import (
    BACKUP as BACKUP_PARAMETERS,
)
from vzsim.fakepbs.parameters import NS, STORE, Boolean, Parameter, check_parameters
from vzsim.fakepbs.reader_session import ReaderSession
from vzsim.fakepbs.requests import ApiError, Request

BACKUP_PROTOCOL: Final = "proxmox-backup-protocol-v1"
READER_PROTOCOL: Final = "proxmox-backup-reader-protocol-v1"
_READER: Final = (
    Parameter("store", STORE),
    NS,
    *BACKUP_PARAMETERS,
    Parameter("debug", Boolean(), is_optional=True),
)
_BACKUP: Final = (
    *_READER,
    Parameter("benchmark", Boolean(), is_optional=True),
)
_NO_CACHE: Final = Parameter("no-cache", Boolean(), is_optional=True)
_BENCHMARK_GROUP: Final = "host/benchmark"


class Admission:
    """Opens sessions of one server."""

    def __init__(
        self, accounts: Accounts, datastores: Mapping[str, Datastore], tools: SessionTools
    ) -> None:
        self._accounts = accounts
        self._datastores = datastores
        self._tools = tools

    def open_backup(self, request: Request, auth_id: str) -> BackupSession:
        """Begin a backup. Raises: ApiError."""
        is_new = self._tools.version >= (4,)
        values = check_parameters(request, (*_BACKUP, _NO_CACHE) if is_new else _BACKUP)
        datastore, place, backup = self._address(values, auth_id, is_backup=True)
        _check_upgrade(request, BACKUP_PROTOCOL)
        _check_namespace(datastore, place)
        is_benchmark = values.get("benchmark", False)
        if is_benchmark and place.group.path != _BENCHMARK_GROUP:
            raise ApiError(f"benchmark flags is only allowed on '{_BENCHMARK_GROUP}'")
        if not is_benchmark and place.group.path == _BENCHMARK_GROUP:
            raise ApiError("unable to run benchmark without --benchmark flags")
        group_lock = datastore.locks.take_exclusive(place.path)
        if group_lock is None:
            raise self._is_locked(datastore, place)
        locks = [group_lock]
        try:
            base = self._prepare(datastore, place, backup, auth_id, is_benchmark=is_benchmark)
            if base is not None:
                locks.append(_shared(datastore, place, base))
            locks.append(_new_directory(datastore, place, backup))
        except (ApiError, OSError, PbsError) as error:
            for lock in locks:
                lock.release()
            if isinstance(error, ApiError):
                raise
            raise ApiError(str(error)) from error
        self._tools.counters.backup_count += 1
        start = BackupStart(
            datastore=datastore,
            place=place,
            backup=backup,
            base=base,
            is_benchmark=is_benchmark,
            begun_s=datastore.now_s(),
            locks=tuple(locks),
        )
        return BackupSession(start, self._tools)

    def _is_locked(self, datastore: Datastore, place: Place) -> ApiError:
        path = f"{datastore.root}/{place.path}"
        text = (
            f'unable to acquire lock on backup group directory "{path}" - '
            "another backup is already running"
        )
        if self._tools.version >= (4,):
            text = f'unable to acquire backup group lock "{path}" - {text}'
        return ApiError(text)

    def _prepare(
        self,
        datastore: Datastore,
        place: Place,
        backup: BackupRef,
        auth_id: str,
        *,
        is_benchmark: bool,
    ) -> BackupRef | None:
        owner = datastore.owner(place)
        if owner is None:
            datastore.set_owner(place, auth_id)
        elif not is_owner(auth_id, owner):
            raise ApiError(f"backup owner check failed ({auth_id} != {owner})")
        if is_benchmark:
            return None
        base = datastore.previous(place)
        if base is not None and self._tools.faults.take(
            request_name(BACKUP_PROTOCOL), FaultKind.PREVIOUS_FAILED
        ):
            failed = Verification(state=VerifyState.FAILED, upid="UPID:fault")
            datastore.mark_verified(place, base, failed)
            base = datastore.previous(place)
        if base is not None and backup.backup_time_s <= base.backup_time_s:
            raise ApiError("backup timestamp is older than last backup.")
        return base

    def open_reader(self, request: Request, auth_id: str) -> ReaderSession:
        """Begin to read a backup. Raises: ApiError."""
        values = check_parameters(request, _READER)
        datastore, place, backup = self._address(values, auth_id, is_backup=False)
        _check_upgrade(request, READER_PROTOCOL)
        _check_namespace(datastore, place)
        granted = self._accounts.privileges_on(auth_id, privilege_path(datastore.name, place))
        owner = datastore.owner(place)
        if READ not in granted and owner is not None and not is_owner(auth_id, owner):
            raise ApiError("backup owner check failed!")
        datastore.check_backup(place, backup)
        lock = _shared(datastore, place, backup)
        return ReaderSession(datastore, place, backup, lock=lock, tools=self._tools)

    def _address(
        self, values: Mapping[str, Any], auth_id: str, *, is_backup: bool
    ) -> tuple[Datastore, Place, BackupRef]:
        """Where the connection goes, if the account may go there."""
        place, backup = read_backup(values)
        store = values["store"]
        path = privilege_path(store, place)
        granted = self._accounts.privileges_on(auth_id, path)
        if is_backup and BACKUP not in granted:
            raise ApiError(f"missing permissions '{BACKUP}' on '{path}'", status=403)
        if not granted & {BACKUP, READ}:
            raise ApiError(f"no permissions on {path}", status=403)
        if store not in self._datastores:
            raise ApiError(f"no such datastore '{store}'")
        return self._datastores[store], place, backup


def request_name(protocol: str) -> str:
    """How counters and fault scripts name an upgrade."""
    return "GET /backup" if protocol == BACKUP_PROTOCOL else "GET /reader"


def privilege_path(store: str, place: Place) -> str:
    """The path that privileges are granted on."""
    path = f"/datastore/{store}"
    return path if place.namespace.is_root else f"{path}/{place.namespace}"


def is_owner(auth_id: str, owner: str) -> bool:
    """Whether an account may use a group: it owns it, or one of its own tokens does."""
    return auth_id == owner or owner.startswith(f"{auth_id}!")


def read_place(values: Mapping[str, Any]) -> Place:
    """Namespace and group of checked parameters. Raises: ApiError."""
    try:
        return Place(
            namespace=Namespace.parse(values.get("ns", "")),
            group=BackupGroup(
                backup_type=parse_backup_type(values["backup-type"]), backup_id=values["backup-id"]
            ),
        )
    except PbsError as error:
        raise ApiError(error.message) from error


def read_backup(values: Mapping[str, Any]) -> tuple[Place, BackupRef]:
    """Namespace, group and backup of checked parameters. Raises: ApiError."""
    place = read_place(values)
    try:
        return place, place.backup(values["backup-time"])
    except PbsError as error:
        raise ApiError(error.message) from error


def _check_upgrade(request: Request, protocol: str) -> None:
    wanted = request.headers.get("upgrade")
    if wanted is None:
        raise ApiError("missing Upgrade header")
    if wanted != protocol:
        raise ApiError("invalid protocol name")


def _check_namespace(datastore: Datastore, place: Place) -> None:
    if not datastore.has_namespace(place.namespace):
        raise ApiError("namespace not found", status=404)


def _shared(datastore: Datastore, place: Place, backup: BackupRef) -> Lock:
    path = place.backup_path(backup)
    lock = datastore.locks.take_shared(path)
    if lock is None:
        raise ApiError(
            f'unable to acquire lock on snapshot directory "{datastore.root}/{path}" - '
            "locked by another operation"
        )
    return lock


def _new_directory(datastore: Datastore, place: Place, backup: BackupRef) -> Lock:
    path = place.backup_path(backup)
    lock = None if datastore.has_backup(place, backup) else datastore.locks.take_exclusive(path)
    if lock is None:
        raise ApiError("backup directory already exists.")
    datastore.files.make_directory(path)
    return lock
