"""Backups on a Proxmox Backup Server: our own client.

Owns everything between a repository string and the wire; formats are `formats.pbs`'s, disks
`stores.disk_pump`'s. One event loop does the network, threads do the data. To make a backup::

    endpoint = PbsEndpoint(repository, trust=TlsTrust(fingerprint=pin),
                           login=make_login(repository.auth_id, secret, clock), clock=clock)
    uploader = PbsUploader(endpoint, clock=clock, open_nbd=open_nbd)
    upload = await uploader.open(backup, disks, configs=configs, namespace=ns, key=key)
    # upload.reuse says of each disk whether its bitmap is relied on, and if not, why.
    transfer = await upload.begin(origins, rate_limit_bytes_per_s=0)    # ports.DiskTransfer
    await transfer.finish()
    uploaded = await upload.finish()       # manifest, figures, warnings
    ...
    await upload.abort()                   # in any case of failure; the server forgets it all

`open` is everything that can be refused, and belongs before the guest is touched; `begin` opens
disks and is the counterpart of `ports.VmaPacker.begin`. To read one, see `BackupReader`; for
lists, notes, protection and pruning `DatastoreCalls`. Source: PBS formats.
"""

from vzdump_qemu.secret import Secret
from vzdump_qemu.stores.pbs.backup_session import BackupSession
from vzdump_qemu.stores.pbs.disk_upload import UploadStats
from vzdump_qemu.stores.pbs.endpoint import PbsEndpoint
from vzdump_qemu.stores.pbs.key_loading import BackupKey, find_passphrase, load_backup_key
from vzdump_qemu.stores.pbs.login import Login, TicketLogin, TokenLogin, make_login
from vzdump_qemu.stores.pbs.management import (
    DatastoreCalls,
    DatastoreStatus,
    KeepCounts,
    ListedBackup,
    ListedFile,
    PrunedBackup,
)
from vzdump_qemu.stores.pbs.reader_session import ReaderSession
from vzdump_qemu.stores.pbs.restore import BackupReader, DiskProof, read_manifest
from vzdump_qemu.stores.pbs.secret import find_secret, read_secret_file
from vzdump_qemu.stores.pbs.timeouts import Timeouts
from vzdump_qemu.stores.pbs.tls import TlsTrust
from vzdump_qemu.stores.pbs.uploader import (
    DiskReuse,
    PbsDisk,
    PbsUpload,
    PbsUploaded,
    PbsUploader,
)

__all__ = [
    "BackupKey",
    "BackupReader",
    "BackupSession",
    "DatastoreCalls",
    "DatastoreStatus",
    "DiskProof",
    "DiskReuse",
    "KeepCounts",
    "ListedBackup",
    "ListedFile",
    "Login",
    "PbsDisk",
    "PbsEndpoint",
    "PbsUpload",
    "PbsUploaded",
    "PbsUploader",
    "PrunedBackup",
    "ReaderSession",
    "Secret",
    "TicketLogin",
    "Timeouts",
    "TlsTrust",
    "TokenLogin",
    "UploadStats",
    "find_passphrase",
    "find_secret",
    "load_backup_key",
    "make_login",
    "read_manifest",
    "read_secret_file",
]
