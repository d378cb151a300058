"""vzdump's own command line: its options as a table, and its way of writing them.

Owns which options there are, their kinds and help texts, and the rewriting of ``-opt value``,
bare booleans and repeated lists into what click reads. What the options mean together is left to
`effective`. Source: host behaviour, sections 1.1 and 2.1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from vzdump_qemu.cli.usage_errors import WrongUse

_TRUE_WORDS = frozenset(("1", "on", "yes", "true"))
_FALSE_WORDS = frozenset(("0", "off", "no", "false"))
_OPTION = re.compile(r"--?([a-z][a-z0-9]*(?:-[a-z0-9]+)*)(?:=(.*))?", re.DOTALL)
_LIST_SEPARATORS = re.compile(r"[\s,;]+")


if TYPE_CHECKING:
    _VzdumpBooleanBase = click.ParamType[bool]
else:
    # Older versions of click know no type arguments.
    _VzdumpBooleanBase = click.ParamType


class VzdumpBoolean(_VzdumpBooleanBase):
    """``1/0/on/off/yes/no/true/false`` in any case."""

    name = "boolean"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        word = str(value).lower()
        if word not in _TRUE_WORDS | _FALSE_WORDS:
            self.fail(f"unable to parse boolean option '{value}'", param, ctx)
        return word in _TRUE_WORDS


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionSpec:
    """One option of the backup verb.

    Attributes:
        section: heading in the help.
        own: ours, not vzdump's: neither in the rebuilt command line nor in vzdump.conf.
        is_list: may be repeated; values are joined by commas.
    """

    name: str
    section: str
    type: click.ParamType[Any]
    metavar: str
    help: str
    own: bool = False
    is_list: bool = False

    @property
    def is_boolean(self) -> bool:
        return isinstance(self.type, VzdumpBoolean)

    @property
    def parameter_name(self) -> str:
        """The name of the keyword argument that click makes of it."""
        return self.name.replace("-", "_")


_WHAT, _SOCKETS, _WHERE, _SERVER, _HOW, _KEEP, _LIMITS, _TOLD, _SHOW, _CONTAINERS = (
    "What to back up",
    "A VM of any QEMU, known only by its sockets (instead of VMIDs)",
    "Where the archive goes",
    "A backup server that is no storage of a node (its password: PBS_PASSWORD)",
    "How",
    "What becomes of backups",
    "Limits",
    "Who is told how it ended (docs/notification.md)",
    "What to show",
    "Of containers alone: accepted, without effect",
)
_BOOLEAN = VzdumpBoolean()
_COUNT = click.IntRange(min=0)
_PARALLEL_MAX = 1000
_OWN_NAMES = ("root", "job", "log-style", "output", "data-path", "fleecing-limit", "script-timeout")
_BATCH_OWN_NAMES = ("max-parallel", "storage-limit", "deadline", "results")
_TOLD_OWN_NAMES = ("notify", "metrics", "report")
_ALL_OWN_NAMES = (*_OWN_NAMES, *_BATCH_OWN_NAMES, *_TOLD_OWN_NAMES)
_LIST_NAMES = ("exclude", "exclude-disk", "exclude-path", "mailto", "notify", "storage-limit")


def _spec(
    section: str, name: str, kind: click.ParamType[Any], metavar: str, text: str
) -> OptionSpec:
    is_list = name in _LIST_NAMES
    own = section in (_SOCKETS, _SERVER) or name in _ALL_OWN_NAMES
    return OptionSpec(
        name=name,
        section=section,
        type=kind,
        metavar=metavar,
        help=text,
        own=own,
        is_list=is_list,
    )


OPTIONS: tuple[OptionSpec, ...] = (
    _spec(
        _WHAT,
        "root",
        click.Path(exists=True, file_okay=False),
        "DIR",
        "the node: / for this host, or the folder of a lab.  [default: /]",
    ),
    _spec(_WHAT, "all", _BOOLEAN, "BOOL", "back up every VM of the node."),
    _spec(_WHAT, "exclude", click.STRING, "VMIDS", "back up all VMs but these; implies --all."),
    _spec(_WHAT, "pool", click.STRING, "POOL", "back up the VMs of this resource pool."),
    _spec(_WHAT, "node", click.STRING, "NODE", "do nothing unless this host is that node."),
    _spec(_WHAT, "stop", _BOOLEAN, "BOOL", "end the job that runs on this node, first."),
    _spec(_WHAT, "job", click.STRING, "ID", "do what this job of jobs.cfg says (docs/service.md)."),
    _spec(_SOCKETS, "qmp", click.STRING, "SOCK", "its monitor: -qmp unix:SOCK,server=on,wait=off."),
    _spec(_SOCKETS, "agent", click.STRING, "SOCK", "its guest agent, for consistent file systems."),
    _spec(_SOCKETS, "name", click.STRING, "NAME", "the name or UUID that the VM must have."),
    _spec(
        _SOCKETS,
        "vmid",
        click.IntRange(100, 999_999_999),
        "ID",
        "the number its archives bear.  [default: made from SOCK]",
    ),
    _spec(
        _SOCKETS,
        "exclude-disk",
        click.STRING,
        "DISKS",
        "leave these out: ids of drives, devices or nodes.",
    ),
    _spec(
        _SOCKETS,
        "fleecing-dir",
        click.Path(exists=True, file_okay=False),
        "DIR",
        "directory of scratch images.  [default: DIR of --dumpdir, else of --state-dir]",
    ),
    _spec(
        _SOCKETS,
        "state-dir",
        click.STRING,
        "DIR",
        "directory of journals and logs.  [default: /var/lib/vzdump-qemu, else ~/.local/state]",
    ),
    _spec(_WHERE, "storage", click.STRING, "ID", "a storage of the node.  [default: local]"),
    _spec(_WHERE, "dumpdir", click.STRING, "DIR", "a directory instead of a storage."),
    _spec(_WHERE, "stdout", _BOOLEAN, "BOOL", "write to standard output; one VM only."),
    _spec(
        _WHERE,
        "tmpdir",
        click.STRING,
        "DIR",
        "directory of the run's own files.  [default: beside the archive]",
    ),
    _spec(
        _SERVER,
        "repository",
        click.STRING,
        "REPO",
        "[[user@realm[!token]@]host[:port]:]datastore.  [env: PBS_REPOSITORY]",
    ),
    _spec(_SERVER, "ns", click.STRING, "NS", "namespace, as a/b.  [default: the root]"),
    _spec(_SERVER, "keyfile", click.STRING, "FILE", "encrypt with this key (`key create`)."),
    _spec(
        _SERVER,
        "master-pubkey-file",
        click.STRING,
        "FILE",
        "store the key with the backup, for the owner of this master key.",
    ),
    _spec(
        _SERVER,
        "fingerprint",
        click.STRING,
        "FP",
        "of the server's certificate.  [env: PBS_FINGERPRINT]",
    ),
    _spec(
        _HOW,
        "mode",
        click.Choice(["snapshot", "suspend", "stop"]),
        "MODE",
        "snapshot, suspend or stop.  [default: snapshot]",
    ),
    _spec(
        _HOW,
        "compress",
        click.Choice(["0", "1", "gzip", "lzo", "zstd"]),
        "KIND",
        "0 (none), 1 (lzo), gzip, lzo or zstd.  [default: 0]",
    ),
    _spec(_HOW, "zstd", _COUNT, "N", "threads of zstd; 0: half the CPUs.  [default: 1]"),
    _spec(
        _HOW,
        "pigz",
        _COUNT,
        "N",
        "pigz instead of gzip; 1: half the CPUs, N: N threads.  [default: 0]",
    ),
    _spec(
        _HOW,
        "fleecing",
        click.STRING,
        "SPEC",
        "[enabled=]BOOL[,storage=ID]: scratch images take the guest's writes.  [default: 0]",
    ),
    _spec(_HOW, "performance", click.STRING, "SPEC", "max-workers=1..256.  [default: 16]"),
    _spec(
        _HOW,
        "data-path",
        click.Choice(["auto", "native", "pull", "offline", "external"]),
        "WAY",
        "auto, native (QEMU's own job), pull (any QEMU), offline (a VM that is off) or external "
        "(`vma create`, templates).  [default: auto]",
    ),
    _spec(
        _HOW,
        "script",
        click.STRING,
        "PATH",
        "hook script, called before, between and after (docs/hook-scripts.md).",
    ),
    _spec(
        _KEEP,
        "prune-backups",
        click.STRING,
        "RULE",
        "keep-last=N,keep-daily=N,...: what else there is goes after a new one is proved.  "
        "[default: the storage's own, else keep-all=1]",
    ),
    _spec(
        _KEEP,
        "remove",
        _BOOLEAN,
        "BOOL",
        "1: remove what the rule does not keep; 0: let it be a limit.  [default: 1]",
    ),
    _spec(
        _KEEP,
        "maxfiles",
        click.IntRange(min=1),
        "N",
        "the same as keep-last=N, as older versions had it.",
    ),
    _spec(
        _KEEP, "protected", _BOOLEAN, "BOOL", "protect the new backup from removal (storages only)."
    ),
    _spec(
        _KEEP,
        "notes-template",
        click.STRING,
        "TEXT",
        "notes of the new backup, with {{guestname}}, {{vmid}}, {{node}}, {{cluster}} "
        "(storages only).",
    ),
    _spec(
        _KEEP, "job-id", click.STRING, "ID", "the job that this belongs to, for the notification."
    ),
    _spec(
        _LIMITS,
        "max-parallel",
        click.IntRange(1, _PARALLEL_MAX),
        "N",
        "so many VMs at the same time (docs/batches.md).  [default: 1]",
    ),
    _spec(
        _LIMITS,
        "storage-limit",
        click.STRING,
        "[ID=]N",
        "so many VMs at the same time that touch a storage; may be repeated.",
    ),
    _spec(
        _LIMITS,
        "deadline",
        click.STRING,
        "WHEN",
        "as 6h or 06:00: no VM is begun later; those that are go on.",
    ),
    _spec(_LIMITS, "bwlimit", _COUNT, "KIB/S", "read limit of each VM; 0: none.  [default: 0]"),
    _spec(
        _LIMITS,
        "fleecing-limit",
        _COUNT,
        "MIB",
        "limit of one scratch image in a file; 0: none.  [default: 0]",
    ),
    _spec(
        _LIMITS,
        "ionice",
        click.IntRange(0, 8),
        "N",
        "I/O priority, 0 (high) to 7 (low); 8: idle.  [default: 7]",
    ),
    _spec(
        _LIMITS, "lockwait", _COUNT, "MIN", "minutes to wait for another job's end.  [default: 180]"
    ),
    _spec(
        _LIMITS,
        "stopwait",
        _COUNT,
        "MIN",
        "minutes to wait for the guest's shutdown.  [default: 10]",
    ),
    _spec(
        _LIMITS,
        "script-timeout",
        _COUNT,
        "MIN",
        "minutes for one call of --script; 0: no limit.  [default: 60]",
    ),
    _spec(_TOLD, "mailto", click.STRING, "WHOM", "mail addresses or user names; may be repeated."),
    _spec(
        _TOLD,
        "mailnotification",
        click.Choice(["always", "failure"]),
        "WHEN",
        "always, or failure: no mail of a job that went well.  [default: always]",
    ),
    _spec(
        _TOLD,
        "notification-mode",
        click.Choice(["auto", "legacy-sendmail", "notification-system"]),
        "MODE",
        "auto (mail if --mailto names somebody), legacy-sendmail or notification-system.  "
        "[default: auto]",
    ),
    _spec(_TOLD, "notify", click.STRING, "URL", "a target of apprise, or @FILE with some of them."),
    _spec(_TOLD, "metrics", click.STRING, "FILE", "figures for Prometheus' node exporter (.prom)."),
    _spec(_TOLD, "results", click.STRING, "FILE", "how every VM went, as JSON."),
    _spec(_SHOW, "quiet", _BOOLEAN, "BOOL", "show nothing; logs are written all the same."),
    _spec(
        _SHOW,
        "output",
        click.Choice(["auto", "log", "json"]),
        "KIND",
        "auto (live on a terminal), log, or json: an event per line on stdout.  [default: auto]",
    ),
    _spec(_SHOW, "report", click.STRING, "FILE", "a page on how it went (docs/reports.md)."),
    _spec(
        _SHOW,
        "log-style",
        click.Choice(["today", "2020"]),
        "STYLE",
        "wording of the log: today's vzdump, or that of 2020.  [default: today]",
    ),
    _spec(_CONTAINERS, "exclude-path", click.STRING, "PATH", "files to leave out."),
    _spec(_CONTAINERS, "stdexcludes", _BOOLEAN, "BOOL", "leave out temporary files."),
    _spec(
        _CONTAINERS,
        "pbs-change-detection-mode",
        click.Choice(["legacy", "data", "metadata"]),
        "MODE",
        "how changed files are found.",
    ),
    _spec(_CONTAINERS, "size", click.INT, "MB", "has no use any more."),
)

CONTAINER_NAMES: tuple[str, ...] = tuple(
    spec.name for spec in OPTIONS if spec.section == _CONTAINERS
)
"""Options that mean nothing for VMs."""


_BY_NAME = {spec.name: spec for spec in OPTIONS}


def find_option(name: str) -> OptionSpec | None:
    """The option of that name, without dashes."""
    return _BY_NAME.get(name)


def rewrite_arguments(arguments: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Rewrite vzdump's way of writing options; return the words, and the options in order.

    Every known option comes out as one word ``--name=value``; other words stay as they are, but
    for a single dash that becomes two.
    """
    words: list[str] = []
    order: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*words, word, *rest], tuple(order)
        match = _OPTION.fullmatch(word)
        if match is None or word in ("-h", "--help"):
            words.append(word)
            continue
        name, value = match[1], match[2]
        spec = _BY_NAME.get(name)
        if spec is None:
            words.append(f"--{word.lstrip('-')}")
            continue
        if value is None:
            value = _take_value(spec, rest)
        words.append(f"--{name}={value}")
        if name not in order:
            order.append(name)
    return words, tuple(order)


def _take_value(spec: OptionSpec, rest: list[str]) -> str:
    if spec.is_boolean:
        # A bare boolean may stand before a VMID; only a boolean word belongs to it.
        has_word = bool(rest) and rest[0].lower() in _TRUE_WORDS | _FALSE_WORDS
        return rest.pop(0) if has_word else "1"
    if not rest:
        raise click.BadOptionUsage(spec.name, f"Option '--{spec.name}' requires an argument.")
    return rest.pop(0)


def parse_vmids(words: Sequence[str]) -> tuple[int, ...]:
    """VMIDs of a list, ascending, each once; separators are commas, semicolons and blanks.

    Raises: click.UsageError for a word that is no VMID.
    """
    vmids = set()
    for word in _LIST_SEPARATORS.split(",".join(words)):
        if not word:
            continue
        if not (word.isascii() and word.isdigit()) or len(word) > 9:
            raise WrongUse(
                f"strange VM ID '{word}'", hint="VMs are named by their numbers, as in 100,101"
            )
        vmids.add(int(word))
    return tuple(sorted(vmids - {0}))
