"""vzdump's way of writing options."""

import click
import pytest

from vzdump_qemu.cli.vzdump_arguments import (
    VzdumpBoolean,
    find_option,
    parse_vmids,
    rewrite_arguments,
)


@pytest.mark.parametrize(
    ("given", "rewritten"),
    [
        (["100", "-storage", "local"], ["100", "--storage=local"]),
        (["--storage", "local", "100"], ["--storage=local", "100"]),
        (["--mode=stop", "100"], ["--mode=stop", "100"]),
        (["--stdout", "100"], ["--stdout=1", "100"]),
        (["-stdout", "ON", "100"], ["--stdout=ON", "100"]),
        (["--stdout=0", "100"], ["--stdout=0", "100"]),
        (["--quiet"], ["--quiet=1"]),
        (["--all", "--quiet", "no"], ["--all=1", "--quiet=no"]),
        (["--dumpdir", "-odd"], ["--dumpdir=-odd"]),
        (["-unknown", "1"], ["--unknown", "1"]),
        (["--help"], ["--help"]),
        (["-h"], ["-h"]),
        (["--", "-storage"], ["--", "-storage"]),
        (["--compress", ""], ["--compress="]),
    ],
)
def test_arguments_are_rewritten(given: list[str], rewritten: list[str]) -> None:
    assert rewrite_arguments(given)[0] == rewritten


def test_order_names_each_option_once_as_given() -> None:
    words = ["100", "--storage", "a", "-mode", "stop", "--storage", "b"]
    assert rewrite_arguments(words)[1] == ("storage", "mode")


def test_option_without_its_value_is_refused() -> None:
    with pytest.raises(click.UsageError, match="--storage"):
        rewrite_arguments(["100", "--storage"])


def test_option_is_found_by_its_name() -> None:
    assert find_option("storage") is not None
    assert find_option("nonsense") is None


@pytest.mark.parametrize(
    ("word", "value"),
    [("1", True), ("Yes", True), ("TRUE", True), ("on", True), ("0", False), ("oFF", False)],
)
def test_boolean_word_is_read(word: str, value: bool) -> None:
    assert VzdumpBoolean().convert(word, None, None) is value


def test_other_word_is_no_boolean() -> None:
    with pytest.raises(click.BadParameter):
        VzdumpBoolean().convert("maybe", None, None)


def test_vmids_are_sorted_and_unique() -> None:
    assert parse_vmids(["0102,100;100", "101 0"]) == (100, 101, 102)


@pytest.mark.parametrize("word", ["abc", "1a", "-1", "1.5", "²", "1234567890"])
def test_strange_vmid_is_refused(word: str) -> None:
    with pytest.raises(click.UsageError, match=f"strange VM ID '{word}'"):
        parse_vmids([word])
