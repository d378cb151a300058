"""Where all backups of a job go: found, and shown to be usable, before any guest is touched.

Owns which of a job's target options counts, and the error texts; the place of a single backup is
`backup_place`'s. Source: host behaviour, sections 1.3 and 2.5.
"""

from __future__ import annotations

from vzdump_qemu.engine.backup_place import DumpDirectory, JobTarget
from vzdump_qemu.engine.context import EnginePorts
from vzdump_qemu.errors import BackupError, StorageError
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.plan.options import BackupOptions, TargetOptions

DEFAULT_STORAGE_ID = "local"


def name_target(target: TargetOptions) -> str:
    """What a limit of the target is given for: storage, directory or repository as it was named."""
    if target.pbs is not None:
        return target.pbs.storage_id or target.pbs.repository.render()
    if target.to_stdout and not target.storage_id:
        return ""
    return target.storage_id or target.dump_directory or DEFAULT_STORAGE_ID


async def find_target(ports: EnginePorts, options: BackupOptions) -> JobTarget:
    """Where backups go, shown to be usable before any guest is touched. Raises StorageError."""
    target = options.target
    server = await _find_server(ports, options)
    if server is not None:
        if target.to_stdout:
            raise StorageError("unable to pipe backup to stdout")
        await _check_server(ports, server)
        return server
    if target.to_stdout:
        return DumpDirectory(path="")
    if target.dump_directory:
        directory = target.dump_directory.rstrip("/") or "/"
        if not await ports.store.exists(directory):
            raise StorageError(
                f"dumpdir '{directory}' does not exist",
                hint="create it, or name a storage with --storage",
            )
        return DumpDirectory(path=directory)
    storage_id = target.storage_id or DEFAULT_STORAGE_ID
    try:
        return DumpDirectory(path=await ports.node.storages.backup_directory(storage_id))
    except BackupError as error:
        raise _not_activated(storage_id, error) from error


async def _find_server(ports: EnginePorts, options: BackupOptions) -> PbsTarget | None:
    target = options.target
    if target.pbs is not None:
        return target.pbs
    if not target.storage_id and (target.to_stdout or target.dump_directory):
        return None
    storage_id = target.storage_id or DEFAULT_STORAGE_ID
    try:
        return await ports.node.storages.backup_server(storage_id)
    except BackupError as error:
        raise _not_activated(storage_id, error) from error


async def _check_server(ports: EnginePorts, server: PbsTarget) -> None:
    try:
        await ports.pbs.check(server)
    except BackupError as error:
        if server.storage_id:
            raise _not_activated(server.storage_id, error) from error
        repository = server.repository.render()
        text = f"could not use backup server '{repository}': {error}"
        raise StorageError(text, hint=error.hint) from error


def _not_activated(storage_id: str, error: BackupError) -> StorageError:
    return StorageError(f"could not activate storage '{storage_id}': {error}", hint=error.hint)
