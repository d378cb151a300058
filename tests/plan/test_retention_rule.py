"""The property string, who may set it, and the limit check: host behaviour 2.1, 2.2, 2.6, 2.7."""

from __future__ import annotations

import pytest

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.plan.retention_rule import (
    KeepOption,
    RetentionRule,
    RetentionSettings,
    RetentionSource,
    StoredCounts,
    check_backup_limit,
    parse_prune_backups,
    render_rule,
    resolve_retention,
)


def test_every_option_is_read() -> None:
    text = ",".join(f"{option.value}={place}" for place, option in enumerate(KeepOption, 1))
    rule = parse_prune_backups(text)
    assert rule == RetentionRule(
        counts={option: place for place, option in enumerate(KeepOption, 1)}
    )
    assert rule.limit_count == 21


@pytest.mark.parametrize(
    "text",
    ["", "keep-all=1", "keep-all=yes", "keep-last=0", "keep-all=1,keep-last=0", "keep-all=0"],
)
def test_no_positive_count_means_keep_all(text: str) -> None:
    rule = parse_prune_backups(text)
    assert (rule, rule.keeps_all, rule.limit_count) == (RetentionRule(), True, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "keep-all=1,keep-last=2",
            "keep-all cannot be set together with other options.",
        ),
        (
            "keep-last=1,keep-last=2",
            "duplicate key in comma-separated list property: keep-last",
        ),
        ("keep-often=1", "invalid key in comma-separated list property: keep-often"),
        ("=1", "missing key in comma-separated list property"),
        ("3", "value without key, but schema does not define a default key"),
        ("keep-last=x", "keep-last: type check ('integer') failed - got 'x'"),
        ("keep-last=-1", "keep-last: value must have a minimum value of 0"),
        ("keep-all=maybe", "keep-all: type check ('boolean') failed - got 'maybe'"),
    ],
)
def test_wrong_property_string_has_the_exact_text(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_prune_backups(text)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("keep-last=2", "keep-last=2"),
        ("keep-weekly=4,keep-last=0,keep-daily=7", "keep-daily=7, keep-last=0, keep-weekly=4"),
        ("keep-all=0,keep-last=3", "keep-last=3"),
        ("keep-all=1", "keep-all=1"),
    ],
)
def test_rule_is_told_sorted_by_key(text: str, told: str) -> None:
    assert render_rule(parse_prune_backups(text)) == told


def source(
    place: str, prune_backups: str | None = None, maxfiles: int | None = None
) -> RetentionSource:
    return RetentionSource(place=place, prune_backups=prune_backups, maxfiles=maxfiles)


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        (
            [
                source("command line", "keep-last=1"),
                source("storage configuration", "keep-last=2"),
                source("file", "keep-last=3"),
            ],
            "keep-last=1",
        ),
        (
            [
                source("command line"),
                source("storage configuration", "keep-last=2"),
                source("file", "keep-last=3"),
            ],
            "keep-last=2",
        ),
        ([source("command line"), source("storage"), source("file", "keep-last=3")], "keep-last=3"),
        ([source("command line")], "keep-all=1"),
        ([source("command line", maxfiles=4), source("storage", "keep-last=2")], "keep-last=4"),
        ([source("command line"), source("storage", maxfiles=5)], "keep-last=5"),
        ([source("storage", maxfiles=0), source("file", "keep-last=3")], "keep-all=1"),
        ([source("storage", "keep-all=1"), source("file", "keep-last=3")], "keep-all=1"),
    ],
    ids=[
        "command line first",
        "storage before the file",
        "file",
        "nobody",
        "maxfiles of the command line",
        "maxfiles of the storage",
        "maxfiles 0 is unlimited",
        "keep-all of the storage counts",
    ],
)
def test_precedence_of_2_2(sources: list[RetentionSource], told: str) -> None:
    assert render_rule(resolve_retention(sources).rule) == told


def test_prune_backups_beats_maxfiles_of_the_same_place_with_a_warning() -> None:
    settings = resolve_retention([source("storage configuration", "keep-last=2", maxfiles=7)])
    assert render_rule(settings.rule) == "keep-last=2"
    assert settings.warnings == (
        "both 'maxfiles' and 'prune-backups' defined as storage configuration - "
        "ignoring 'maxfiles'",
    )


@pytest.mark.parametrize(
    ("rule", "remove", "effective"),
    [
        ("keep-last=2", True, True),
        ("keep-last=2", False, False),
        ("keep-all=1", True, False),
        ("keep-last=0", True, False),
    ],
)
def test_keep_all_forces_remove_off(rule: str, remove: bool, effective: bool) -> None:
    assert resolve_retention([source("x", rule)], remove=remove).remove is effective


def test_rule_that_cannot_be_read_names_the_option_and_the_place() -> None:
    with pytest.raises(ConfigError, match="prune-backups: invalid key") as caught:
        resolve_retention([source("storage configuration", "keep=1")])
    assert "storage configuration" in caught.value.hint
    with pytest.raises(ConfigError, match="maxfiles: value must have a minimum value of 0"):
        resolve_retention([source("storage configuration", maxfiles=-1)])


def settings_of(rule: str, *, remove: bool) -> RetentionSettings:
    return resolve_retention([source("x", rule)], remove=remove)


@pytest.mark.parametrize(
    ("rule", "remove", "unprotected_count", "refused"),
    [
        ("keep-last=2", False, 1, False),
        ("keep-last=2", False, 2, True),
        ("keep-last=2,keep-daily=3", False, 4, False),
        ("keep-last=2,keep-daily=3", False, 5, True),
        ("keep-last=2", True, 99, False),
        ("keep-all=1", False, 99, False),
    ],
)
def test_limit_of_2_6_counts_only_where_nothing_is_removed(
    rule: str, remove: bool, unprotected_count: int, refused: bool
) -> None:
    settings = settings_of(rule, remove=remove)
    stored = StoredCounts(protected_count=50, unprotected_count=unprotected_count)
    if not refused:
        check_backup_limit(settings, stored, protect=False)
        return
    with pytest.raises(ConfigError) as caught:
        check_backup_limit(settings, stored, protect=False)
    assert caught.value.message == (
        f"There is a max backup limit of {settings.rule.limit_count} enforced by the target "
        "storage or the vzdump parameters. Either increase the limit or delete old backups."
    )


@pytest.mark.parametrize(
    ("protected_max", "protected_count", "refused"),
    [(-1, 100, False), (5, 4, False), (5, 5, True), (0, 0, True)],
)
def test_protected_backups_have_a_limit_of_their_own(
    protected_max: int, protected_count: int, refused: bool
) -> None:
    # The other limit does not count for them.
    settings = settings_of("keep-last=1", remove=False)
    stored = StoredCounts(protected_count=protected_count, unprotected_count=9)
    if not refused:
        check_backup_limit(settings, stored, protect=True, protected_max=protected_max)
        return
    with pytest.raises(ConfigError) as caught:
        check_backup_limit(
            settings, stored, protect=True, protected_max=protected_max, storage_id="nas"
        )
    assert caught.value.message == (
        f"The number of protected backups per guest is limited to {protected_max} on storage 'nas'"
    )
