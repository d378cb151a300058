"""Compressors by option."""

from __future__ import annotations

import pytest

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.plan.compression import choose_compressor


@pytest.mark.parametrize(
    ("compress", "pigz", "zstd", "argv", "extension"),
    [
        ("0", 0, 1, (), ""),
        ("1", 0, 1, ("lzop",), ".lzo"),
        ("lzo", 0, 1, ("lzop",), ".lzo"),
        ("gzip", 0, 1, ("gzip", "--rsyncable"), ".gz"),
        ("gzip", 1, 1, ("pigz", "-p", "4", "--rsyncable"), ".gz"),
        ("gzip", 3, 1, ("pigz", "-p", "3", "--rsyncable"), ".gz"),
        ("zstd", 0, 0, ("zstd", "--threads=4"), ".zst"),
        ("zstd", 0, 1, ("zstd", "--threads=1"), ".zst"),
        ("zstd", 0, 6, ("zstd", "--threads=6"), ".zst"),
    ],
)
def test_compressor_command_by_option(
    compress: str, pigz: int, zstd: int, argv: tuple[str, ...], extension: str
) -> None:
    found = choose_compressor(compress, pigz=pigz, zstd=zstd, cpu_count=7)
    assert (found.argv, found.extension) == (argv, extension)


def test_unknown_compressor_is_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError, match="'bzip2' is not a compressor") as caught:
        choose_compressor("bzip2", pigz=0, zstd=1, cpu_count=1)
    assert "zstd" in caught.value.hint


@pytest.mark.parametrize(("cpu_count", "threads"), [(1, 1), (2, 1), (3, 2), (4, 2), (64, 32)])
def test_half_of_the_processors_is_rounded_as_vzdump_does(cpu_count: int, threads: int) -> None:
    zstd = choose_compressor("zstd", pigz=0, zstd=0, cpu_count=cpu_count)
    assert zstd.argv == ("zstd", f"--threads={threads}")
    pigz = choose_compressor("gzip", pigz=1, zstd=0, cpu_count=cpu_count)
    assert pigz.argv == ("pigz", "-p", str(threads), "--rsyncable")
