"""Archives that were cut short on their way, seen at a glance."""

from __future__ import annotations

from pathlib import Path

import pytest

from vzdump_qemu.errors import VmaError
from vzdump_qemu.stores.archive_glance import looks_whole
from vzdump_qemu.stores.archive_reading import verify_archive
from vzdump_qemu.units import render_archive_size

DATA = Path(__file__).parents[1] / "data" / "vma"
WHOLE = sorted(path for path in DATA.iterdir() if ".vma" in path.name and path.is_file())
PLAIN = sorted(path for path in WHOLE if path.suffix == ".vma")
LZOP = sorted(path for path in WHOLE if path.suffix == ".lzo")


def is_whole(path: Path) -> bool:
    try:
        verify_archive(str(path))
    except VmaError:
        return False
    return True


def look(path: Path, log: Path | None = None) -> bool:
    return looks_whole(str(path), str(log or path.with_name("none.log")))


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.name)
def test_whole_archive_looks_whole(path: Path) -> None:
    assert look(path) or not is_whole(path)


def test_there_are_archives_of_each_kind() -> None:
    assert PLAIN and LZOP and len(WHOLE) > len(PLAIN) + len(LZOP)


@pytest.mark.parametrize("path", [*PLAIN[:3], *LZOP], ids=lambda path: path.name)
def test_archive_that_was_cut_short_does_not(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    cut = tmp_path / path.name
    for lost_bytes in (1, 511, 4096, len(content) // 2 + 1, len(content)):
        cut.write_bytes(content[: max(0, len(content) - lost_bytes)])
        assert not look(cut), lost_bytes


@pytest.mark.parametrize("name", ["comp-zstd.vma.zst"])
def test_archive_of_another_size_than_its_log_tells_does_not(name: str, tmp_path: Path) -> None:
    content = (DATA / name).read_bytes()
    archive, log = tmp_path / name, tmp_path / "it.log"
    archive.write_bytes(content)
    line = "2026-01-02 03:04:05 INFO: archive file size: {}\n"
    right = render_archive_size(len(content))
    for text, expected in (
        (line.format(right), True),
        (line.format("1KB") + line.format(right) + "more\n", True),
        (line.format("9.99GB"), False),
        ("nothing of it\n", True),
        ("", True),
    ):
        log.write_text(text)
        assert look(archive, log) is expected, text


def test_what_is_no_archive_does_not(tmp_path: Path) -> None:
    (tmp_path / "x.vma").write_bytes(b"VMA\0" + bytes(100))
    assert not look(tmp_path / "x.vma")
    assert not look(tmp_path / "missing.vma")
