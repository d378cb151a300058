"""Which compressor filters the archive; pure. Source: host behaviour, section 2.9."""

from __future__ import annotations

from dataclasses import dataclass

from vzdump_qemu.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressor:
    """Argument vector of a filter and the extension it gives; both empty for none."""

    argv: tuple[str, ...]
    extension: str


def choose_compressor(compress: str, *, pigz: int, zstd: int, cpu_count: int) -> Compressor:
    """Choose by vzdump's options.

    Args:
        compress: ``0``, ``1``, ``gzip``, ``lzo`` or ``zstd``.
        pigz: 0 for gzip, 1 for half of the processors, else the number of threads.
        zstd: 0 for half of the processors, else the number of threads.
    Raises:
        ConfigError: no such compressor.
    """
    half = (cpu_count + 1) // 2
    match compress:
        case "0" | "":
            return Compressor(argv=(), extension="")
        case "1" | "lzo":
            return Compressor(argv=("lzop",), extension=".lzo")
        case "gzip" if pigz == 0:
            return Compressor(argv=("gzip", "--rsyncable"), extension=".gz")
        case "gzip":
            threads = half if pigz == 1 else pigz
            return Compressor(argv=("pigz", "-p", str(threads), "--rsyncable"), extension=".gz")
        case "zstd":
            threads = half if zstd == 0 else zstd
            return Compressor(argv=("zstd", f"--threads={threads}"), extension=".zst")
        case _:
            raise ConfigError(
                f"compress: '{compress}' is not a compressor",
                hint="use 0, 1, gzip, lzo or zstd",
            )
