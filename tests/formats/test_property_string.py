"""Property strings: grammar, error texts, booleans and sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.formats.property_string import (
    PropertyKind,
    PropertySchema,
    parse_boolean,
    parse_property_string,
    parse_size,
    split_property_string,
)

SCHEMA = PropertySchema(
    keys={
        "file": PropertyKind.TEXT,
        "backup": PropertyKind.BOOLEAN,
        "queues": PropertyKind.INTEGER,
    },
    default_key="file",
    aliases={"volume": "file"},
)
NO_DEFAULT = PropertySchema(keys={"max-workers": PropertyKind.INTEGER})


def _error_text(text: str, schema: PropertySchema = SCHEMA) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_property_string(text, schema)
    return caught.value.message


def test_parse_values_of_each_kind_are_converted() -> None:
    assert parse_property_string("a:b,backup=no,queues=4", SCHEMA) == {
        "file": "a:b",
        "backup": False,
        "queues": 4,
    }


def test_parse_empty_parts_are_ignored() -> None:
    assert parse_property_string(",queues=1,, ,", SCHEMA) == {"queues": 1}
    assert parse_property_string("", SCHEMA) == {}


def test_parse_value_with_equals_sign_splits_at_the_first() -> None:
    assert parse_property_string("file=a=b=c", SCHEMA) == {"file": "a=b=c"}


def test_parse_alias_maps_to_its_target() -> None:
    assert parse_property_string("volume=a:b", SCHEMA) == {"file": "a:b"}


@pytest.mark.parametrize("text", ["file=a,file=b", "a,b", "a,file=b", "volume=a,file=b"])
def test_parse_duplicate_key_is_refused_by_name(text: str) -> None:
    assert _error_text(text) == "duplicate key in comma-separated list property: file"


def test_parse_unknown_key_is_refused_by_name() -> None:
    assert _error_text("foo=1") == "invalid key in comma-separated list property: foo"


@pytest.mark.parametrize("text", ["=1", "file="])
def test_parse_half_a_part_is_refused(text: str) -> None:
    assert _error_text(text) == "missing key in comma-separated list property"


def test_parse_bare_value_without_default_key_is_refused() -> None:
    expected = "value without key, but schema does not define a default key"
    assert _error_text("16", NO_DEFAULT) == expected


def test_parse_value_of_wrong_kind_is_refused_with_its_key() -> None:
    assert _error_text("queues=many") == "queues: type check ('integer') failed - got 'many'"
    assert _error_text("backup=2") == "backup: type check ('boolean') failed - got '2'"


def test_split_keeps_raw_values_in_order() -> None:
    values = split_property_string("backup=maybe,file=x", SCHEMA)
    assert list(values.items()) == [("backup", "maybe"), ("file", "x")]


@pytest.mark.parametrize("word", ["1", "on", "yes", "true", "YES", "True"])
def test_parse_boolean_true_words(word: str) -> None:
    assert parse_boolean(word) is True


@pytest.mark.parametrize("word", ["0", "off", "no", "false", "OFF"])
def test_parse_boolean_false_words(word: str) -> None:
    assert parse_boolean(word) is False


@pytest.mark.parametrize("word", ["", "2", " 1", "y"])
def test_parse_boolean_other_words_are_refused(word: str) -> None:
    with pytest.raises(ConfigError):
        parse_boolean(word)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("512", 512),
        ("528K", 540672),
        ("528KiB", 540672),
        ("4M", 4 << 20),
        ("1.5G", 3 << 29),
        ("32G", 32 << 30),
        ("2T", 2 << 40),
        ("0.1K", 102),
    ],
)
def test_parse_size_units_count_by_1024(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "G", "1X", "-1", "1.", ".5G", "1 G", "1KB", "٣G", "9" * 5000])
def test_parse_size_other_words_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_size(text)


@given(st.text())
def test_parse_any_text_gives_values_or_a_config_error(text: str) -> None:
    try:
        values = parse_property_string(text, SCHEMA)
    except ConfigError:
        return
    assert values.keys() <= SCHEMA.keys.keys()
