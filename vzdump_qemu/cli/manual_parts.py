"""What the manual page says beside the options: files, environment, examples, other pages.

Owns these texts alone; the page is put together by `manual`.
"""

from __future__ import annotations

from typing import Final

DESCRIPTION: Final = (
    "vzdump-qemu backs up virtual machines of QEMU: to VMA archives in a file, or to a Proxmox "
    "Backup Server. Its command line, its log and its exit codes are those of vzdump. The file "
    "systems of a running guest are frozen for milliseconds through its agent, one point in time "
    "is fixed for all disks, and the data is read while the guest runs on. A backup gets its "
    "final name only after it was shown to be whole. Whatever fails on the way, the guest is put "
    "back as it was.",
    "Numbers and options alone mean the verb backup. A backup's options may be written with one "
    "dash or two; the value follows as the next word or after an equals sign. A BOOL is one of 1, "
    "0, on, off, yes, no, true and false, and a bare one means 1. Options that take lists may be "
    "repeated.",
)

FILES: Final = (
    ("/etc/vzdump.conf", "defaults of a node's backups, as for vzdump."),
    ("/etc/pve/jobs.cfg, /etc/vzdump-qemu/jobs.cfg", "jobs that --job runs."),
    ("/etc/pve/storage.cfg", "the storages of the node."),
    ("/var/log/vzdump/qemu-VMID.log", "the log of the VM's last backup."),
    ("/var/lib/vz/dump", "archives of the storage local; each with a log beside it."),
    ("/var/lib/vzdump-qemu", "journals: what would have to be put back after a kill."),
    ("/var/run/vzdump.lock", "held by the one job that may run on a node."),
    ("~/.local/state/vzdump-qemu", "logs and journals of VMs known by sockets, unless as root."),
)

ENVIRONMENT: Final = (
    ("PBS_REPOSITORY", "the backup server, where --repository names none."),
    ("PBS_PASSWORD", "its password, or the secret of an API token."),
    ("PBS_FINGERPRINT", "of its certificate, where --fingerprint gives none."),
    ("PBS_ENCRYPTION_PASSWORD", "the passphrase of an encryption key."),
    ("NO_COLOR", "if set, the live display has no colours."),
    ("TERM", "dumb or empty: plain lines instead of the live display."),
)

EXAMPLES: Final = (
    (
        "A VM of this node to the storage local:",
        "vzdump-qemu 100 --mode snapshot --compress zstd",
    ),
    (
        "Every VM but two, kept for a week:",
        "vzdump-qemu --exclude 101,102 --storage backup \\\n"
        "    --prune-backups keep-last=3,keep-daily=7",
    ),
    (
        "A VM of any QEMU, known only by its sockets:",
        "vzdump-qemu --qmp /run/web.qmp --agent /run/web.qga --dumpdir /backup",
    ),
    (
        "Is an archive whole, and what is in it?",
        "vzdump-qemu verify vzdump-qemu-100-2026_01_02-03_04_05.vma.zst\n"
        "vzdump-qemu show vzdump-qemu-100-2026_01_02-03_04_05.vma.zst",
    ),
    (
        "To a backup server, and back into a lab:",
        "export PBS_REPOSITORY=me@pbs@host:store PBS_PASSWORD=...\n"
        'vzdump-qemu 100 --repository "$PBS_REPOSITORY"\n'
        "vzdump-qemu restore vm/100/latest 200 --root ./lab",
    ),
    (
        "Something to try it on:",
        "vzdump-qemu lab create ./lab --vm 100 --disk scsi0=1G --fill 1\n"
        "vzdump-qemu lab start ./lab 100\n"
        "vzdump-qemu --root ./lab 100",
    ),
    ("Completion for the running bash:", "source <(vzdump-qemu completion bash)"),
)

SEE_ALSO: Final = (
    ("vzdump", 1),
    ("qmrestore", 1),
    ("qm", 1),
    ("proxmox-backup-client", 1),
    ("qemu-img", 1),
    ("apprise", 1),
)
