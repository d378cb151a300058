"""Replies that come later, and what a script does to a reply on its way out.

Shared by the monitor's dispatcher and the agent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vzsim.fakeqmp.schema import CommandError
from vzsim.fakeqmp.script import CommandRule


class Pending:
    """The outcome of a command that is not there yet: a value or a CommandError."""

    def __init__(self) -> None:
        self._outcome: list[Any] = []
        self._callback: Callable[[Any], None] | None = None

    def resolve(self, outcome: Any) -> None:
        """Set the outcome; once only."""
        self._outcome.append(outcome)
        if self._callback is not None:
            self._callback(outcome)

    def then(self, callback: Callable[[Any], None]) -> None:
        """Have the outcome delivered, at once if it is there."""
        self._callback = callback
        if self._outcome:
            callback(self._outcome[0])


class RuleBook:
    """Finds the rule for the n-th use of a command."""

    def __init__(self, rules: tuple[CommandRule, ...]) -> None:
        self._rules = rules
        self._counts: dict[str, int] = {}

    def rule_for(self, name: str) -> CommandRule | None:
        """Count one use of a command and return the first rule that fits."""
        if not self._rules:
            return None
        self._counts[name] = self._counts.get(name, 0) + 1
        for rule in self._rules:
            if rule.name == name and rule.nth in (0, self._counts[name]):
                return rule
        return None


def canned_outcome(rule: CommandRule | None) -> Any:
    """What the rule answers in place of the command, or None if the command is carried out."""
    if rule is None:
        return None
    if rule.error is not None:
        return CommandError(rule.error, rule.error_class)
    return rule.reply


def bend_outcome(rule: CommandRule | None, outcome: Any) -> Any:
    """Apply ``patch`` and ``drop`` to a real reply that is an object."""
    if rule is None or not isinstance(outcome, Mapping):
        return outcome
    bent = {**outcome, **rule.patch}
    return {key: value for key, value in bent.items() if key not in rule.drop}


def message_of(outcome: Any) -> dict[str, Any]:
    """The reply message without its id."""
    if isinstance(outcome, CommandError):
        return {"error": {"class": outcome.error_class, "desc": outcome.description}}
    return {"return": outcome}
