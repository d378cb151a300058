"""Exit codes: unique, documented, and the document up to date."""

from pathlib import Path

from vzdump_qemu.cli.exit_codes import error_classes, render_exit_codes

DOCUMENT = Path(__file__).parents[2] / "docs" / "exit-codes.md"


def test_every_error_has_an_exit_code_of_its_own() -> None:
    codes = [error_class.exit_code for error_class in error_classes()]
    assert len(codes) == len(set(codes))
    assert not {0, 2, 255} & set(codes)
    assert all(0 < code < 256 for code in codes)


def test_every_error_class_defines_its_code_itself() -> None:
    assert [error.__name__ for error in error_classes() if "exit_code" not in vars(error)] == []


def test_document_is_what_the_tree_of_errors_says() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == render_exit_codes()
