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


_WHAT, _SOCKETS, _WHERE, _SERVER, _HOW, _KEEP, _LIMITS, _SHOW, _CONTAINERS = (
    "What to back up",
    "A VM of any QEMU, known only by its sockets (instead of VMIDs)",
    "Where the archive goes",
    "A backup server that is no storage of a node (its password: PBS_PASSWORD)",
    "How",
    "What becomes of backups",
    "Limits",
    "What to show",
    "Of containers alone: accepted, without effect",
)
_BOOLEAN = VzdumpBoolean()
_COUNT = click.IntRange(min=0)
_OWN_NAMES = ("root", "log-style", "output", "data-path", "fleecing-limit", "script-timeout")
_LIST_NAMES = ("exclude", "exclude-disk", "exclude-path")


def _spec(
    section: str, name: str, kind: click.ParamType[Any], metavar: str, text: str
) -> OptionSpec:
    is_list = name in _LIST_NAMES
    own = section in (_SOCKETS, _SERVER) or name in _OWN_NAMES
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
    _spec(_WHAT, "all", _BOOLEAN, "BOOL", "every VM of the node."),
    _spec(_WHAT, "exclude", click.STRING, "VMIDS", "all but these; implies --all."),
    _spec(_WHAT, "pool", click.STRING, "POOL", "the VMs of this resource pool."),
    _spec(_WHAT, "node", click.STRING, "NODE", "do nothing unless this is the node."),
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
    _spec(_SOCKETS, "exclude-disk", click.STRING, "DISKS", "leave out: drive, device or node ids."),
    _spec(
        _SOCKETS,
        "fleecing-dir",
        click.Path(exists=True, file_okay=False),
        "DIR",
        "for scratch images.  [default: DIR of --dumpdir, else of --state-dir]",
    ),
    _spec(
        _SOCKETS,
        "state-dir",
        click.STRING,
        "DIR",
        "for journals and logs.  [default: /var/lib/vzdump-qemu, else ~/.local/state]",
    ),
    _spec(_WHERE, "storage", click.STRING, "ID", "a storage of the node.  [default: local]"),
    _spec(_WHERE, "dumpdir", click.STRING, "DIR", "a directory instead of a storage."),
    _spec(_WHERE, "stdout", _BOOLEAN, "BOOL", "standard output; one VM only."),
    _spec(_WHERE, "tmpdir", click.STRING, "DIR", "for the run's own files."),
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
        "0, 1 (lzo), gzip, lzo or zstd.  [default: 0]",
    ),
    _spec(_HOW, "zstd", _COUNT, "N", "zstd threads; 0: half the CPUs.  [default: 1]"),
    _spec(_HOW, "pigz", _COUNT, "N", "pigz instead of gzip; 1: half the CPUs, N: N threads."),
    _spec(
        _HOW,
        "fleecing",
        click.STRING,
        "SPEC",
        "[enabled=]BOOL[,storage=ID]: scratch images take the guest's writes.",
    ),
    _spec(_HOW, "performance", click.STRING, "SPEC", "max-workers=1..256.  [default: 16]"),
    _spec(
        _HOW,
        "data-path",
        click.Choice(["auto", "native", "pull", "offline", "external"]),
        "WAY",
        "auto, native (QEMU's own job), pull (any QEMU), offline (a VM that is off) or external "
        "(`vma create`, templates).",
    ),
    _spec(
        _HOW,
        "script",
        click.STRING,
        "PATH",
        "called before, between and after (docs/hook-scripts.md).",
    ),
    _spec(
        _KEEP,
        "prune-backups",
        click.STRING,
        "RULE",
        "keep-last=N,keep-daily=N,...: older ones go after a new one is proved.",
    ),
    _spec(
        _KEEP, "remove", _BOOLEAN, "BOOL", "remove by that rule, else it is a limit.  [default: 1]"
    ),
    _spec(_KEEP, "maxfiles", click.IntRange(min=1), "N", "as keep-last=N (of older versions)."),
    _spec(_KEEP, "protected", _BOOLEAN, "BOOL", "protect the new one from removal (storages)."),
    _spec(
        _KEEP,
        "notes-template",
        click.STRING,
        "TEXT",
        "with {{guestname}}, {{vmid}}, {{node}}, {{cluster}} (storages).",
    ),
    _spec(_KEEP, "job-id", click.STRING, "ID", "of the job that this belongs to."),
    _spec(_LIMITS, "bwlimit", _COUNT, "KIB/S", "read limit; 0: none."),
    _spec(_LIMITS, "fleecing-limit", _COUNT, "MIB", "of one scratch image in a file; 0: none."),
    _spec(_LIMITS, "ionice", click.IntRange(0, 8), "N", "I/O priority 0-8.  [default: 7]"),
    _spec(_LIMITS, "lockwait", _COUNT, "MIN", "for another job's end.  [default: 180]"),
    _spec(_LIMITS, "stopwait", _COUNT, "MIN", "for the guest's shutdown.  [default: 10]"),
    _spec(
        _LIMITS,
        "script-timeout",
        _COUNT,
        "MIN",
        "for one call of --script; 0: none.  [default: 60]",
    ),
    _spec(_SHOW, "quiet", _BOOLEAN, "BOOL", "show nothing; logs are written all the same."),
    _spec(
        _SHOW,
        "output",
        click.Choice(["auto", "log", "json"]),
        "KIND",
        "auto (live on a terminal), log, or json: an event per line on stdout.",
    ),
    _spec(
        _SHOW,
        "log-style",
        click.Choice(["today", "2020"]),
        "STYLE",
        "wording of the log: today's vzdump, or that of 2020.",
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
    _spec(_CONTAINERS, "size", click.INT, "MB", "unused for long."),
)

CONTAINER_NAMES: tuple[str, ...] = tuple(
    spec.name for spec in OPTIONS if spec.section == _CONTAINERS
)
"""Options that mean nothing for VMs."""


NOT_YET: frozenset[str] = frozenset(("mailnotification", "mailto", "notification-mode", "stop"))
"""Options that vzdump has and we do not: refused by name rather than ignored."""

_BY_NAME = {spec.name: spec for spec in OPTIONS}


def find_option(name: str) -> OptionSpec | None:
    """The option of that name, without dashes."""
    return _BY_NAME.get(name)


def rewrite_arguments(arguments: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Rewrite vzdump's way of writing options; return the words, and the options in order.

    Every known option comes out as one word ``--name=value``; other words stay as they are, but
    for a single dash that becomes two.

    Raises: click.UsageError for an option that vzdump has and we do not.
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
            if name in NOT_YET:
                raise click.UsageError(
                    f"option '--{name}' of vzdump is not supported by this version"
                )
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
            raise click.UsageError(f"strange VM ID '{word}'")
        vmids.add(int(word))
    return tuple(sorted(vmids - {0}))
