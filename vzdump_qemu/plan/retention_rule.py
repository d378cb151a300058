"""How many archives of a VM stay: the property string, who may set it, and the limits; pure.

Owns ``prune-backups`` with the older ``maxfiles`` and ``remove``, their precedence, and the check
before a run that a new archive finds room. Which archives a rule keeps is left to `retention`.
Source: host behaviour, sections 2.1 to 2.3, 2.6 and 2.7.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.formats.property_string import (
    PropertyKind,
    PropertySchema,
    parse_property_string,
)

KEEP_ALL = "keep-all"
NO_PROTECTED_LIMIT = -1


class KeepOption(enum.Enum):
    """The options of a rule, in the order in which they are applied."""

    LAST = "keep-last"
    HOURLY = "keep-hourly"
    DAILY = "keep-daily"
    WEEKLY = "keep-weekly"
    MONTHLY = "keep-monthly"
    YEARLY = "keep-yearly"


_SCHEMA = PropertySchema(
    keys={
        KEEP_ALL: PropertyKind.BOOLEAN,
        **{option.value: PropertyKind.INTEGER for option in KeepOption},
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionRule:
    """What stays. Without any positive count everything does (``keep-all``).

    Attributes:
        counts: as they were given, zeros included; empty for ``keep-all``.
    """

    counts: Mapping[KeepOption, int] = field(default_factory=dict)

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is ever removed."""
        return not any(count > 0 for count in self.counts.values())

    @property
    def limit_count(self) -> int:
        """The most archives that may stay; 0 if there is no limit."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionSource:
    """What one place says about retention.

    Attributes:
        place: how warnings and errors name it, e.g. ``storage configuration``.
        prune_backups: property string, None if the place does not set it.
        maxfiles: number of archives as older versions counted them, 0 for all; None if not set.
    """

    place: str
    prune_backups: str | None = None
    maxfiles: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionSettings:
    """What counts once all places were asked.

    Attributes:
        remove: whether a run removes older archives when it is done.
        warnings: a line for each setting that was overruled within its own place.
    """

    rule: RetentionRule
    remove: bool
    warnings: tuple[str, ...] = ()


def parse_prune_backups(text: str) -> RetentionRule:
    """Read a ``prune-backups`` property string.

    Raises: ConfigError for what the grammar forbids, a negative count, or ``keep-all`` beside a
        positive count.
    """
    values = parse_property_string(text, _SCHEMA)
    counts = {option: int(values[option.value]) for option in KeepOption if option.value in values}
    for option, count in counts.items():
        if count < 0:
            raise ConfigError(
                f"{option.value}: value must have a minimum value of 0",
                hint="0 switches an option off",
            )
    if not any(counts.values()):
        return RetentionRule()
    if values.get(KEEP_ALL):
        raise ConfigError(
            "keep-all cannot be set together with other options.",
            hint="leave out keep-all, or all the other keep options",
        )
    return RetentionRule(counts=counts)


def render_rule(rule: RetentionRule) -> str:
    """The rule as the log names it: ``keep-daily=7, keep-last=2``."""
    if rule.keeps_all:
        return f"{KEEP_ALL}=1"
    return ", ".join(sorted(f"{option.value}={count}" for option, count in rule.counts.items()))


def positive_counts(rule: RetentionRule) -> dict[str, int]:
    """The counts that are above zero, by name: what a backup server is told of a rule."""
    return {option.value: count for option, count in rule.counts.items() if count > 0}


def resolve_retention(
    sources: Sequence[RetentionSource], *, remove: bool = True
) -> RetentionSettings:
    """Find the rule that counts: that of the first place which sets one.

    Args:
        sources: the command line, the storage, ``vzdump.conf``, in that order.
        remove: the effective option of that name.
    Raises:
        ConfigError: a rule that counts cannot be read.
    """
    warnings: list[str] = []
    rule: RetentionRule | None = None
    for source in sources:
        if source.prune_backups is not None and source.maxfiles is not None:
            warnings.append(
                f"both 'maxfiles' and 'prune-backups' defined as {source.place} - "
                "ignoring 'maxfiles'"
            )
        if rule is None:
            rule = _rule_of(source)
    rule = rule or RetentionRule()
    return RetentionSettings(
        rule=rule, remove=remove and not rule.keeps_all, warnings=tuple(warnings)
    )


def _rule_of(source: RetentionSource) -> RetentionRule | None:
    if source.prune_backups is not None:
        try:
            return parse_prune_backups(source.prune_backups)
        except ConfigError as error:
            raise ConfigError(
                f"prune-backups: {error.message}",
                hint=error.hint or f"keep-last=N,keep-daily=N,... or keep-all=1 ({source.place})",
            ) from error
    if source.maxfiles is None:
        return None
    if source.maxfiles < 0:
        raise ConfigError("maxfiles: value must have a minimum value of 0")
    return RetentionRule(counts={KeepOption.LAST: source.maxfiles} if source.maxfiles else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCounts:
    """How many archives of one VM a target holds before a run."""

    protected_count: int
    unprotected_count: int


def check_backup_limit(
    settings: RetentionSettings,
    stored: StoredCounts,
    *,
    protect: bool,
    protected_max: int = NO_PROTECTED_LIMIT,
    storage_id: str = "",
) -> None:
    """Refuse a run whose archive would exceed what the target may hold of its VM.

    A rule that removes makes its own room, so only one that does not is a limit.

    Args:
        protect: the new archive will be protected.
        protected_max: of the storage; `NO_PROTECTED_LIMIT` for none.
    Raises:
        ConfigError: there is no room.
    """
    if protect:
        if 0 <= protected_max <= stored.protected_count:
            raise ConfigError(
                f"The number of protected backups per guest is limited to {protected_max} on "
                f"storage '{storage_id}'",
                hint="unprotect an older backup, or raise 'max-protected-backups'",
            )
        return
    limit_count = settings.rule.limit_count
    if settings.remove or limit_count == 0:
        return
    if stored.unprotected_count >= limit_count:
        raise ConfigError(
            f"There is a max backup limit of {limit_count} enforced by the target storage or the "
            "vzdump parameters. Either increase the limit or delete old backups."
        )
