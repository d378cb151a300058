"""What the command ``vzdump-qemu`` consists of: its name, its verbs, its ways of use.

Owns the table of verbs; choosing one and running it is `main`'s. Nothing is imported for it.
"""

from __future__ import annotations

from collections.abc import Mapping

PROGRAM = "vzdump-qemu"
COMPLETION_VARIABLE = "_VZDUMP_QEMU_COMPLETE"
"""Set by a shell that asks what may follow on a command line."""

DEFAULT_VERB = "backup"
# Verb: module, attribute, help. `backup` is listed as the usage line; `demo` is for `make demo`.
VERBS: dict[str, tuple[str, str, str]] = {
    "backup": ("backup_verb", "backup_command", "Back up VMs (the default verb)."),
    "list": ("list_verb", "list_command", "List the backups of a lab, directory or server."),
    "show": ("archive_verbs", "show_command", "Show what a backup holds."),
    "verify": ("archive_verbs", "verify_command", "Say whether a backup is whole."),
    "extract": ("archive_verbs", "extract_command", "Write disks and configurations as files."),
    "restore": ("restore_verb", "restore_command", "Make a VM of a lab from a backup."),
    "prune": ("prune_verb", "prune_command", "Remove archives by a rule, or show what stays."),
    "key": ("key_verb", "key_group", "Make and show keys that encrypt backups."),
    "jobs": ("jobs_verb", "jobs_command", "List the jobs that --job knows, and their times."),
    "recover": ("recover_verb", "recover_command", "Put back what killed backups left."),
    "lab": ("lab_verb", "lab_group", "Make and run a folder laid out like a node."),
    "completion": ("completion_shells", "completion_command", "Print a shell's completion script."),
    "manual": ("manual", "manual_command", "Print the manual page vzdump-qemu(1)."),
    "demo": ("demo", "demo_command", "Back up, verify, restore and compare in a lab."),
}

VERB_HELP: Mapping[str, str] = {verb: text for verb, (_, _, text) in VERBS.items()}
"""What each verb does, in a line."""

USAGES = (
    "[--root DIR] VMID... [OPTIONS]",
    "--qmp SOCK --dumpdir DIR [OPTIONS]",
    "VERB [OPTIONS] [ARGUMENTS]",
)
