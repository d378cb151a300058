"""The stand-in for zstd and gzip, in process and as the filter that it is."""

from __future__ import annotations

import gzip
import subprocess
import sys
import zlib

import pytest
import zstandard

from vzdump_qemu.stores.builtin_compressor import main, open_compressor

DATA = bytes(range(256)) * 5_000
MODULE = "vzdump_qemu.stores.builtin_compressor"


def _filter(
    *arguments: str, data: bytes = DATA, stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", MODULE, *arguments],
        input=data,
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=30,
        check=False,
    )


def _unzstd(packed: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(packed)


@pytest.mark.parametrize("arguments", [(), ("--threads=2",), ("--threads=0", "-19", "--rsyncable")])
def test_filter_zstd_gives_one_frame_with_a_checksum(arguments: tuple[str, ...]) -> None:
    done = _filter("zstd", *arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    assert zstandard.get_frame_parameters(done.stdout).has_checksum
    assert _unzstd(done.stdout) == DATA


def test_filter_gzip_gives_one_member() -> None:
    done = _filter("gzip", "--rsyncable")
    assert (done.returncode, done.stderr) == (0, b"")
    assert gzip.decompress(done.stdout) == DATA


@pytest.mark.parametrize("program", ["zstd", "gzip"])
def test_filter_empty_input_gives_an_empty_archive(program: str) -> None:
    done = _filter(program, data=b"")
    assert done.returncode == 0
    assert (_unzstd if program == "zstd" else gzip.decompress)(done.stdout) == b""


def test_filter_full_target_fails_with_words() -> None:
    with open("/dev/full", "wb") as full:
        done = _filter("zstd", stdout=full.fileno())
    assert done.returncode == 1
    assert b"No space left on device" in done.stderr


def test_levels_change_the_size_and_are_held_in_range() -> None:
    data = b"".join(b"%d " % (number * number) for number in range(8_000))

    def size(program: str, *arguments: str) -> int:
        compressor = open_compressor(program, arguments)
        return len(compressor.compress(data) + compressor.flush())

    assert size("zstd", "-19") < size("zstd", "-1")
    assert size("zstd", "-99") == size("zstd", "-19")
    assert size("gzip", "-9") < size("gzip", "-1")
    assert size("gzip") == len(zlib.compress(data, 6, wbits=31))


def test_unknown_program_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lzop"]) == 1
    assert "unknown compressor 'lzop'" in capsys.readouterr().err
    assert main([]) == 2
