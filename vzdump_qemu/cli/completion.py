"""What may follow on a command line: verbs, options, and the values that are allowed there.

Owns reading the words so far and the choice of what fits; a command line that is wrong so far has
no answer. What a node holds is `completion_values`', how a shell asks is `completion_shells`'.
Source: host behaviour, section 1.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import click
from click.shell_completion import CompletionItem

from vzdump_qemu.cli import completion_values
from vzdump_qemu.cli.vzdump_arguments import VzdumpBoolean

Items = list[CompletionItem]
Candidate = tuple[str, str]
"""A value and what it is."""

_DEFAULT_VERB = "backup"
_DIRECTORY_METAVARS = frozenset(("DIR", "LAB", "[LAB-OR-DIR]"))
_FILE_METAVARS = frozenset(("FILE", "PATH", "SOCK"))
# Options and arguments by their parameters' names; each is given the root of the node.
_OF_NODE: Mapping[str, Callable[[str], Iterable[Candidate]]] = {
    "vmids": completion_values.list_vms,
    "vmid": completion_values.list_vms,
    "exclude": completion_values.list_vms,
    "storage": completion_values.list_storages,
    "storage_id": completion_values.list_storages,
    "pool": completion_values.list_pools,
    "job": completion_values.list_jobs,
    "timer_of": completion_values.list_jobs,
    "backup_name": completion_values.list_archives,
}
_COMMA_LISTS = frozenset(("vmids", "exclude"))
_ROOT_NAMES = ("root", "place")


@dataclass(slots=True)
class _Words:
    """The words so far: the command that they name, and what they gave it."""

    command: click.Command
    context: click.Context
    given: dict[str, str] = field(default_factory=dict)
    pending: click.Parameter | None = None
    argument_count: int = 0
    is_verbless: bool = False

    @property
    def root(self) -> str:
        return next((self.given[name] for name in _ROOT_NAMES if name in self.given), "/")


def complete(group: click.Group, words: Sequence[str], incomplete: str) -> Items:
    """What may stand in place of the last, incomplete word.

    Args:
        words: those before it, without the program's name.
    """
    read = _read(group, list(words))
    if read.pending is not None:
        return _values(read, read.pending, incomplete)
    if incomplete.startswith("-"):
        head, equals, value = incomplete.partition("=")
        if not equals:
            return _options(read, incomplete)
        param = _find_option(read.command, head)
        items = [] if param is None else _values(read, param, value)
        return [
            CompletionItem(f"{head}={item.value}", type=item.type, help=item.help)
            for item in items
            if item.type == "plain"
        ]
    items = []
    if isinstance(read.command, click.Group):
        items = _verbs(read, read.command, incomplete)
    elif read.is_verbless and not words:
        items = _verbs(read, group, incomplete)
    arguments = [param for param in read.command.params if isinstance(param, click.Argument)]
    if arguments:
        last = min(read.argument_count, len(arguments) - 1)
        if read.argument_count < len(arguments) or arguments[last].nargs == -1:
            items += _values(read, arguments[last], incomplete)
    return items


def _read(group: click.Group, words: list[str]) -> _Words:
    context = _open_context(group, group.name or "", None)
    command: click.Command = group
    is_verbless = not words or words[0] not in group.list_commands(context)
    if is_verbless:
        words = [_DEFAULT_VERB, *words]
    while words and isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        if found is None:
            break
        context = _open_context(found, words.pop(0), context)
        command = found
    read = _Words(command=command, context=context, is_verbless=is_verbless)
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    for word in words:
        if read.pending is not None:
            read.given[read.pending.name or ""] = word
            read.pending = None
        elif word.startswith("-") and word != "-":
            _read_option(read, word)
        else:
            if read.argument_count < len(arguments):
                read.given[arguments[read.argument_count].name or ""] = word
            read.argument_count += 1
    return read


def _open_context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    # click keeps a command's help option as the first context has it.
    return click.Context(command, info_name=name, parent=parent, **command.context_settings)


def _read_option(read: _Words, word: str) -> None:
    head, equals, value = word.partition("=")
    param = _find_option(read.command, head)
    if param is None:
        return
    if equals:
        read.given[param.name or ""] = value
    elif not param.is_flag and not isinstance(param.type, VzdumpBoolean):
        read.pending = param


def _find_option(command: click.Command, word: str) -> click.Option | None:
    """The option of that name, with one dash or two."""
    name = word.lstrip("-")
    for param in command.params:
        if isinstance(param, click.Option) and f"--{name}" in (*param.opts, *param.secondary_opts):
            return param
    return None


def _options(read: _Words, incomplete: str) -> Items:
    # One dash and two are equal for a backup: what was begun with one goes on with one.
    is_single = read.context.info_name == _DEFAULT_VERB and not incomplete.startswith("--")
    is_single = is_single and incomplete != "-"
    items = []
    for param in read.command.get_params(read.context):
        if not isinstance(param, click.Option) or param.hidden:
            continue
        is_given = param.name in read.given and not param.multiple
        for word in (*param.opts, *param.secondary_opts):
            text = word[1:] if is_single and word.startswith("--") else word
            if len(word) > 2 and text.startswith(incomplete) and not is_given:
                items.append(CompletionItem(text, help=_one_line(param.help or "")))
    return items


def _verbs(read: _Words, group: click.Group, incomplete: str) -> Items:
    return [
        CompletionItem(verb, help=completion_values.verb_help(group, verb, read.context))
        for verb in group.list_commands(read.context)
        if verb.startswith(incomplete)
    ]


def _values(read: _Words, param: click.Parameter, incomplete: str) -> Items:
    if isinstance(param.type, click.Choice):
        return _fitting(((str(choice), "") for choice in param.type.choices), incomplete)
    if isinstance(param.type, VzdumpBoolean):
        return _fitting((("1", ""), ("0", "")), incomplete)
    source = _OF_NODE.get(param.name or "")
    items: Items = []
    if source is not None:
        before, comma, last = incomplete.rpartition(",")
        if param.name not in _COMMA_LISTS:
            before, comma, last = "", "", incomplete
        listed = before.split(",")
        new = (candidate for candidate in source(read.root) if candidate[0] not in listed)
        items = _fitting(new, last, f"{before}{comma}")
    if param.name == "backup_name" and not items:
        return [CompletionItem(incomplete, type="file")]
    if param.metavar in _DIRECTORY_METAVARS or param.name == "root":
        return [CompletionItem(incomplete, type="dir")]
    if param.metavar in _FILE_METAVARS:
        return [CompletionItem(incomplete, type="file")]
    return items


def _fitting(candidates: Iterable[Candidate], incomplete: str, before: str = "") -> Items:
    return [
        CompletionItem(f"{before}{value}", help=_one_line(text) or None)
        for value, text in candidates
        if value.startswith(incomplete)
    ]


def _one_line(text: str) -> str:
    return " ".join(text.split())
