"""How shells ask what may follow, and the verb ``completion`` that prints their scripts.

Owns the scripts and the way back from a shell's words to ours; what may follow is `completion`'s.
The shell runs the program with ``_VZDUMP_QEMU_COMPLETE=SHELL_complete``, as click's own scripts
do; theirs are replaced where they lose commas, spaces or error messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
)

from vzdump_qemu.cli.completion import complete
from vzdump_qemu.cli.verbs import COMPLETION_VARIABLE, PROGRAM

_BASH_SCRIPT = """\
%(complete_func)s() {
    local IFS=$'\\n' line
    COMPREPLY=()
    while read -r line; do
        case $line in
            dir,*) compopt -o filenames -o dirnames ;;
            file,*) compopt -o filenames -o default ;;
            plain,*) COMPREPLY+=("${line#plain,}") ;;
        esac
    done < <(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD="$COMP_CWORD" \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""
_FISH_SCRIPT = """\
function %(complete_func)s
    for line in (env %(complete_var)s=fish_complete COMP_WORDS=(commandline -cp | string collect) \\
            COMP_CWORD=(commandline -t | string collect) %(prog_name)s 2>/dev/null)
        set -l parts (string split -m 1 , -- $line)
        switch $parts[1]
            case dir
                __fish_complete_directories $parts[2]
            case file
                __fish_complete_path $parts[2]
            case plain
                printf '%%s\\n' $parts[2]
        end
    end
end
complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""
# Bash takes these for ends of words, unless it is told otherwise for all programs.
_BASH_BREAKS = "=:"


class _Asking(ShellComplete):
    """What may follow is ours; click's own answer knows neither one dash nor the default verb."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        assert isinstance(self.cli, click.Group)
        return complete(self.cli, args, incomplete)


class _Bash(_Asking, BashComplete):
    """Puts together what bash took apart, and gives back only the piece that it asked for."""

    source_template = _BASH_SCRIPT

    def get_completion_args(self) -> tuple[list[str], str]:
        before, incomplete = super().get_completion_args()
        words = join_broken([*before, incomplete])
        return words[:-1], words[-1]

    def complete(self) -> str:
        words, incomplete = self.get_completion_args()
        start = 1 + max(incomplete.rfind(mark) for mark in _BASH_BREAKS)
        return "".join(
            f"{item.type},{str(item.value)[start:]}\n"
            for item in self.get_completions(words, incomplete)
        )

    @staticmethod
    def _check_version() -> None:
        """Nothing to warn of: the script needs nothing new."""


def join_broken(words: Sequence[str]) -> list[str]:
    """Words as the user wrote them, of bash's pieces, which end at each ``=`` and ``:``."""
    joined: list[str] = []
    goes_on = False
    for word in words:
        is_break = bool(word) and not word.strip(_BASH_BREAKS)
        if joined and (is_break or goes_on):
            joined[-1] += word
        else:
            joined.append(word)
        goes_on = is_break
    return joined or [""]


class _Zsh(_Asking, ZshComplete):
    source_template = ZshComplete.source_template.replace(
        "=zsh_complete %(prog_name)s", "=zsh_complete %(prog_name)s 2>/dev/null"
    )


class _Fish(_Asking, FishComplete):
    source_template = _FISH_SCRIPT


_SHELLS: dict[str, type[ShellComplete]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}


def _in_shell(name: str, group: click.Group) -> ShellComplete:
    return _SHELLS[name](group, {}, PROGRAM, COMPLETION_VARIABLE)


def answer(group: click.Group, instruction: str) -> str:
    """What a shell is told.

    Args:
        instruction: ``SHELL_complete``, or ``SHELL_source`` for the script.
    """
    name, _, act = instruction.partition("_")
    shell = _in_shell(name, group)
    return shell.source() if act == "source" else shell.complete() + "\n"


@click.command("completion")
@click.argument("shell", metavar="SHELL", type=click.Choice(list(_SHELLS)))
def completion_command(**values: Any) -> None:
    """Print the completion script of SHELL: bash, zsh or fish.

    It belongs into a file where the shell looks for such scripts, for example:

    \b
    bash  /etc/bash_completion.d/vzdump-qemu
    zsh   /usr/share/zsh/vendor-completions/_vzdump-qemu
    fish  /etc/fish/completions/vzdump-qemu.fish
    """
    group = click.get_current_context().find_root().command
    assert isinstance(group, click.Group)
    click.echo(_in_shell(values["shell"], group).source().strip())
