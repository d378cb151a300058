"""The grammar of sections, by itself: where one begins, ends, and what its lines are."""

from __future__ import annotations

from vzdump_qemu.formats.section_config import Section, SectionLine, split_sections


def test_sections_are_split_at_empty_lines_and_keep_their_line_numbers() -> None:
    raw = b"Dir: one\n\tpath /a b \n# no\n  #\n \t\n\tshared\n\nstray\nvzdump: two"
    assert split_sections(raw) == (
        Section(
            type="dir",
            section_id="one",
            number=1,
            lines=(
                SectionLine(number=2, text="\tpath /a b ", key="path", value="/a b"),
                SectionLine(number=6, text="\tshared", key="shared"),
            ),
        ),
        SectionLine(number=8, text="stray"),
        Section(type="vzdump", section_id="two", number=9, lines=()),
    )


def test_header_without_an_empty_line_before_it_is_a_line_without_a_key() -> None:
    [section] = split_sections(b"dir: one\n\tpath /a\ndir: two\n\tpath /b\n")
    assert isinstance(section, Section)
    assert [line.key for line in section.lines] == ["path", "", "path"]
    assert section.lines[1] == SectionLine(number=3, text="dir: two")


def test_bytes_that_are_no_text_are_kept_readable() -> None:
    [section] = split_sections(b"dir: one\n\tpath /\xff\n")
    assert isinstance(section, Section)
    assert section.lines[0].value == "/\\xff"


def test_empty_file_has_no_sections() -> None:
    assert split_sections(b"") == ()
