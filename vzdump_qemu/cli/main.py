"""The command ``vzdump-qemu``: which verb is meant, and what a process ends with.

Owns the choice of the verb, the help of the whole command and the one place where exceptions
become texts and exit codes. Verbs live in modules of their own and are imported when used: the
help must be instant. Source: architecture, section 8.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from vzdump_qemu.cli.verbs import COMPLETION_VARIABLE, DEFAULT_VERB, PROGRAM, USAGES, VERBS
from vzdump_qemu.cli.vzdump_arguments import OPTIONS
from vzdump_qemu.errors import BackupError, InternalError, Interrupted

_HIDDEN_VERBS = ("demo",)
_GROUP_WORDS = ("--help", "-h", "--version")
_DEBUG_WORD = "--debug"
_DENIED_HINT = "it belongs to somebody else: a node and its labs are root's"

EPILOG = """Exit codes of a backup, as vzdump's: 0 every VM was backed up (warnings included), \
255 anything failed. Other verbs: 0, or the error's own code (docs/exit-codes.md); \
2 for a wrong command line."""


class VerbGroup(click.Group):
    """Verbs that are imported when called; numbers and options alone mean a backup."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and _means_backup(args[0]):
            args = [DEFAULT_VERB, *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [verb for verb in VERBS if verb not in _HIDDEN_VERBS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, attribute, _ = VERBS[cmd_name]
        command = getattr(import_module(f"vzdump_qemu.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for number, usage in enumerate(USAGES):
            formatter.write_usage(PROGRAM, usage, prefix="       " if number else None)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs (VERB --help tells more)"):
            formatter.write_dl([(verb, VERBS[verb][2]) for verb in self.list_commands(ctx)])
        write_option_sections(formatter)
        with formatter.section("Everywhere"):
            formatter.write_dl(
                [
                    (_DEBUG_WORD, "show the traceback of an internal error."),
                    ("--version", "show the version."),
                    ("--help", "show this text."),
                ]
            )


def write_option_sections(formatter: click.HelpFormatter) -> None:
    """Write the options of a backup under their headings."""
    for section in dict.fromkeys(spec.section for spec in OPTIONS):
        rows = [
            (f"--{spec.name} {spec.metavar}", spec.help)
            for spec in OPTIONS
            if spec.section == section
        ]
        with formatter.section(section):
            formatter.write_dl(rows)


def _means_backup(word: str) -> bool:
    return (word.startswith("-") and word not in _GROUP_WORDS) or word[:1].isdigit()


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(f"{PROGRAM} {version(PROGRAM)}")
        ctx.exit()


@click.group(
    cls=VerbGroup,
    epilog=EPILOG,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--version", is_flag=True, is_eager=True, callback=_show_version, expose_value=False)
def command_line() -> None:
    """Back up virtual machines of QEMU to archives or a backup server, and prove them whole."""


def run(arguments: Sequence[str], *, command: click.Command = command_line) -> int:
    """Run one command line and return the exit code; whatever happens is told on stderr."""
    if COMPLETION_VARIABLE in os.environ and isinstance(command, click.Group):
        return _complete(command)
    words = [word for word in arguments if word != _DEBUG_WORD]
    debug = len(words) != len(arguments)
    if not debug:
        _quiet_libraries()
    try:
        outcome = command.main(args=words, prog_name=PROGRAM, standalone_mode=False)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        from vzdump_qemu.cli.usage_errors import explain

        text, hint = explain(error, program=PROGRAM, vzdump_verb=DEFAULT_VERB)
        click.echo(f"{text}\nhint: {hint}", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _tell(Interrupted())
    except BackupError as error:
        return _tell(error)
    except SystemExit:
        # What click makes of a broken pipe; nothing of ours ends this way.
        return _flush_output(Interrupted.exit_code)
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        return _tell(
            InternalError(
                f"internal error: {type(error).__name__}: {error}".splitlines()[0],
                hint=f"please report this with the output of the same command and {_DEBUG_WORD}",
            )
        )
    return _flush_output(outcome if isinstance(outcome, int) else 0)


def _complete(group: click.Group) -> int:
    """Answer a shell that asks what may follow; whoever only pressed a key hears of no error."""
    from vzdump_qemu.cli.completion_shells import answer

    try:
        click.echo(answer(group, os.environ[COMPLETION_VARIABLE]), nl=False)
    except Exception:
        return InternalError.exit_code
    return 0


def _quiet_libraries() -> None:
    """Keep what libraries complain of to themselves (a connection that broke) from the user.

    Whatever matters of it reaches us as an exception, and him as one line.
    """
    import logging

    logging.getLogger().addHandler(logging.NullHandler())


def _flush_output(code: int) -> int:
    """Write out what is left; return the code, or that of an interruption if nobody reads it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody is left to be told. Python would try once more at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return code or Interrupted.exit_code
    return code


def _tell(error: BackupError) -> int:
    click.echo(f"ERROR: {error}", err=True)
    hint = error.hint or (_DENIED_HINT if os.strerror(errno.EACCES) in str(error) else "")
    if hint:
        click.echo(f"hint: {hint}", err=True)
    return error.exit_code


def main() -> NoReturn:
    """Entry point of the script."""
    sys.exit(run(sys.argv[1:]))
