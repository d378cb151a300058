"""The native protocol of the journal."""

import pytest

from vzdump_qemu.formats.journal_entry import VALUE_BYTES_MAX, encode_journal_entry


def test_value_of_one_line_is_an_assignment() -> None:
    assert (
        encode_journal_entry({"MESSAGE": "ü", "PRIORITY": "6"}) == b"MESSAGE=\xc3\xbc\nPRIORITY=6\n"
    )


def test_value_of_several_lines_has_its_length_before_it() -> None:
    encoded = encode_journal_entry({"MESSAGE": "a\nb=c"})
    assert encoded == b"MESSAGE\n\x05\x00\x00\x00\x00\x00\x00\x00a\nb=c\n"


def test_long_value_is_cut() -> None:
    assert len(encode_journal_entry({"M": "x" * 10**6})) == VALUE_BYTES_MAX + len("M=\n")


def test_text_that_is_no_unicode_is_replaced() -> None:
    assert encode_journal_entry({"M": "\udcff"}) == b"M=?\n"


@pytest.mark.parametrize("name", ["", "_PID", "message", "A=B", "A\nB", "X" * 65])
def test_name_that_the_journal_drops_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a journal field"):
        encode_journal_entry({name: "x"})
