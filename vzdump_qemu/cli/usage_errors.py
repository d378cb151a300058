"""What is said of a wrong command line: one line with the reason, one with what to do next.

Owns the wording of every complaint that click or a verb raises as a usage error; the exit code is
click's, 2. A backup's first words are vzdump's own. Source: host behaviour, section 1.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import click

_VZDUMP_HEAD = "400 Parameter verification failed."
_HEAD = "ERROR:"
_NO_COMMAND = re.compile(r"No such command '(.*?)'", re.DOTALL)
_NO_CHOICE = re.compile(r"'(.*)' is not one of", re.DOTALL)
_NEEDED = re.compile(r"needs option '(.*?)'")
_LIKENESS_MIN = 0.6


class WrongUse(click.UsageError):
    """A command line that a verb refuses.

    Args:
        hint: what to do next; empty for the verb's help.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def explain(error: click.ClickException, *, program: str, vzdump_verb: str) -> tuple[str, str]:
    """The reason and the hint, one line each.

    Args:
        vzdump_verb: the verb whose complaints begin as vzdump's do.
    """
    context = error.ctx if isinstance(error, click.UsageError) else None
    text, hint = _complaint(error, context)
    of_vzdump = context is not None and context.info_name == vzdump_verb
    line = f"{_VZDUMP_HEAD if of_vzdump else _HEAD} {' '.join(text.split())}"
    return line.rstrip("."), hint or _usage_hint(context, program)


def _complaint(error: click.ClickException, context: click.Context | None) -> tuple[str, str]:
    match error:
        case WrongUse():
            return error.message, error.hint or _hint_for(error.message, context)
        case click.NoSuchOption():
            # One dash and two are equal: the nearest is shown with two.
            wrong = f"--{error.option_name.lstrip('-')}"
            return f"no such option: {wrong}", _did_you_mean(wrong, _long_options(context))
        case click.MissingParameter() if error.param is not None:
            return f"{_label(error.param, context)} is missing", _option_hint(error.param)
        case click.BadParameter() if error.param is not None:
            return _bad_value(error, error.param, context)
        case click.BadOptionUsage():
            name = error.option_name.lstrip("-")
            return f"{name}: a value is missing", _option_hint(_find(name, context))
    no_command = _NO_COMMAND.match(error.message)
    if no_command and context is not None and isinstance(context.command, click.Group):
        verbs = context.command.list_commands(context)
        numbers = "VMs are named by their numbers; " if context.parent is None else ""
        all_verbs = f"{numbers}verbs are {', '.join(verbs)}"
        hint = _did_you_mean(no_command[1], verbs) or all_verbs
        return f"no such verb: '{no_command[1]}'", hint
    return error.message, _hint_for(error.message, context)


def _hint_for(message: str, context: click.Context | None) -> str:
    """What a verb's own complaint asks for: one of two options less, or another value."""
    if "conflicts with" in message:
        return "leave out one of the two"
    needed = _NEEDED.search(message)
    if needed:
        return _option_hint(_find(needed[1], context))
    name, colon, _ = message.partition(": ")
    return _option_hint(_find(name, context)) if colon else ""


def _bad_value(
    error: click.BadParameter, param: click.Parameter, context: click.Context | None
) -> tuple[str, str]:
    text, hint = error.message.rstrip("."), _option_hint(param)
    if isinstance(param.type, click.Choice):
        wrong = _NO_CHOICE.match(text)
        choices = [str(choice) for choice in param.type.choices]
        text = f"'{wrong[1] if wrong else ''}' is not one of {', '.join(choices)}"
        hint = _did_you_mean(wrong[1] if wrong else "", choices) or hint
    elif isinstance(param.type, click.IntRange):
        low, high = param.type.min, param.type.max
        allowed = f"{low} or more" if high is None else f"{low} to {high}"
        value = text.split(" is not ")[0].strip("'")
        text = f"'{value}' is not a whole number, {allowed}"
    return f"{_label(param, context)}: {text}", hint


def _label(param: click.Parameter, context: click.Context | None) -> str:
    """An option without its dashes, as vzdump names it; an argument by its metavar."""
    if isinstance(param, click.Option):
        return max(param.opts, key=len).lstrip("-")
    metavar = param.metavar or param.name or ""
    return metavar.strip("[].").upper()


def _option_hint(param: click.Parameter | None) -> str:
    if not isinstance(param, click.Option):
        return ""
    metavar = param.metavar or param.type.name
    return " ".join(f"{max(param.opts, key=len)} {metavar}: {param.help or ''}".split())


def _find(name: str, context: click.Context | None) -> click.Parameter | None:
    params = context.command.params if context is not None else []
    return next((param for param in params if f"--{name}" in param.opts), None)


def _long_options(context: click.Context | None) -> Sequence[str]:
    if context is None:
        return ()
    params = context.command.get_params(context)
    return [word for param in params for word in param.opts if word.startswith("--")]


def _did_you_mean(wrong: str, right: Iterable[str]) -> str:
    # Loaded late: the help is instant.
    import difflib

    near = difflib.get_close_matches(wrong, right, n=1, cutoff=_LIKENESS_MIN)
    return f"did you mean {near[0]}?" if near else ""


def _usage_hint(context: click.Context | None, program: str) -> str:
    if context is None or context.parent is None:
        return f"'{program} --help' tells more"
    usage = " ".join(context.get_usage().split()).removeprefix("Usage: ")
    return f"{usage}; '{context.command_path} --help' tells more"
