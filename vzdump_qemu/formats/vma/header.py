"""The archive header: its values, how they are encoded, and what is refused when reading.

Owns names, configurations and the device table. Extents are in `extent`, completeness in `book`.
Source: VMA format, sections 2, 3 and 6. Stricter than the reference reader in that names must be
text that is safe as a file name, no two devices share a name, one configuration name stands for
one content, a disk size is a multiple of 512, and no configuration has the name of a disk's file.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vzdump_qemu.errors import VmaError
from vzdump_qemu.formats.vma import layout
from vzdump_qemu.units import SECTOR_BYTES, ceil_div, round_up


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigBlob:
    """One configuration file: at most 65535 bytes under a name that is safe as a file name."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class VmaDevice:
    """One row of the device table.

    Attributes:
        vma_dev_id: 1..254.
        name: the disk's device id, or ``vmstate`` for a RAM state.
        size_bytes: size of the disk; only informative for a RAM state.
    """

    vma_dev_id: int
    name: str
    size_bytes: int

    @property
    def is_vmstate(self) -> bool:
        return self.name == layout.VMSTATE_NAME

    @property
    def vma_cluster_count(self) -> int:
        """Clusters that a disk of this size must have in the archive."""
        return ceil_div(self.size_bytes, layout.VMA_CLUSTER_BYTES)

    @property
    def file_name(self) -> str:
        """Name under which the content is extracted."""
        return "vmstate.bin" if self.is_vmstate else f"disk-{self.name}.raw"

    @property
    def temp_file_name(self) -> str:
        """Name of that file until the whole archive proved right."""
        return f"tmp-{self.file_name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VmaHeader:
    """A whole archive header.

    Attributes:
        uuid: 16 bytes, repeated in each extent.
        ctime_s: seconds since the epoch, any signed 64-bit value.
        header_bytes: length of the header, where the first extent begins.
        configs: in the order of the archive, each name once.
        devices: by rising device number.
    """

    uuid: bytes
    ctime_s: int
    header_bytes: int
    configs: tuple[ConfigBlob, ...]
    devices: tuple[VmaDevice, ...]

    def config(self, name: str) -> ConfigBlob | None:
        """The configuration of that name, or None."""
        return next((config for config in self.configs if config.name == name), None)


def encode_header(
    uuid: bytes, ctime_s: int, configs: Sequence[ConfigBlob], devices: Sequence[VmaDevice]
) -> bytes:
    """Encode a header, a multiple of 512 bytes.

    Raises:
        VmaError: VMA cannot hold this: no content at all, too many or unsafe names, sizes.
    """
    if len(uuid) != layout.UUID_BYTES:
        raise VmaError(f"vma uuid has {len(uuid)} bytes instead of {layout.UUID_BYTES}")
    if not -(1 << 63) <= ctime_s < 1 << 63:
        raise VmaError(f"vma creation time {ctime_s} out of range")
    if not configs and not devices:
        raise VmaError("vma archive would hold neither a configuration nor a device")
    _check_configs_to_write(configs)
    _check_devices_to_write(devices)
    check_names(configs, devices)
    strings = _Strings()
    slots = [
        (strings.append(config.name.encode() + b"\0"), strings.append(config.data))
        for config in configs
    ]
    rows = [
        (device.vma_dev_id, strings.append(device.name.encode() + b"\0"), device.size_bytes)
        for device in sorted(devices, key=lambda device: device.vma_dev_id)
    ]
    header_bytes = layout.FIXED_HEADER_BYTES + strings.reserved_bytes
    if header_bytes > layout.WRITTEN_HEADER_BYTES_MAX:
        raise VmaError(
            f"vma header of {header_bytes} bytes is over {layout.WRITTEN_HEADER_BYTES_MAX}",
            hint="store fewer or smaller configuration files",
        )
    header = bytearray(header_bytes)
    layout.HEADER_STRUCT.pack_into(
        header, 0, layout.MAGIC, layout.VERSION, uuid, ctime_s, bytes(layout.MD5_BYTES),
        layout.FIXED_HEADER_BYTES, len(strings.buffer), header_bytes,
    )  # fmt: skip
    for slot_index, (name_pointer, data_pointer) in enumerate(slots):
        at = slot_index * layout.POINTER_STRUCT.size
        layout.POINTER_STRUCT.pack_into(header, layout.CONFIG_NAMES_OFFSET + at, name_pointer)
        layout.POINTER_STRUCT.pack_into(header, layout.CONFIG_DATA_OFFSET + at, data_pointer)
    for vma_dev_id, pointer, size_bytes in rows:
        at = layout.DEVICE_TABLE_OFFSET + vma_dev_id * layout.DEVICE_STRUCT.size
        layout.DEVICE_STRUCT.pack_into(header, at, pointer, size_bytes)
    strings_end = layout.FIXED_HEADER_BYTES + len(strings.buffer)
    header[layout.FIXED_HEADER_BYTES : strings_end] = strings.buffer
    digest = md5_digest(header)
    header[layout.HEADER_MD5_OFFSET : layout.HEADER_MD5_OFFSET + layout.MD5_BYTES] = digest
    return bytes(header)


def header_bytes_announced(fixed: bytes) -> int:
    """Length of the whole header, from its first 12288 bytes.

    Raises:
        VmaError: not a VMA archive, or a length no archive with content can have.
    """
    magic, _, _, _, _, _, _, header_bytes = layout.HEADER_STRUCT.unpack_from(fixed)
    if magic != layout.MAGIC:
        raise VmaError("not a vma file - wrong magic number", offset_bytes=0)
    if header_bytes <= layout.FIXED_HEADER_BYTES:
        raise VmaError(f"wrong vma header size {header_bytes}", offset_bytes=56)
    if header_bytes > layout.READ_HEADER_BYTES_MAX:
        raise VmaError(
            f"wrong vma header size {header_bytes} (over {layout.READ_HEADER_BYTES_MAX})",
            offset_bytes=56,
        )
    return int(header_bytes)


def decode_header(raw: bytes) -> VmaHeader:
    """Decode a whole header, checks in the order of section 6.

    Raises:
        VmaError: sums, version, geometry, pointers, names or sizes are wrong.
    """
    _, version, uuid, ctime_s, digest, strings_offset, strings_bytes, header_bytes = (
        layout.HEADER_STRUCT.unpack_from(raw)
    )
    blank = bytearray(raw)
    end = layout.HEADER_MD5_OFFSET + layout.MD5_BYTES
    blank[layout.HEADER_MD5_OFFSET : end] = bytes(layout.MD5_BYTES)
    if md5_digest(blank) != digest:
        raise VmaError("wrong vma header chechsum", offset_bytes=layout.HEADER_MD5_OFFSET)
    if version != layout.VERSION:
        raise VmaError(f"wrong vma version {version}", offset_bytes=4)
    if strings_offset < layout.FIXED_HEADER_BYTES:
        raise VmaError(f"wrong vma blob buffer offset {strings_offset}", offset_bytes=48)
    if strings_offset + strings_bytes > header_bytes:
        raise VmaError(
            f"wrong vma blob buffer size {strings_offset}/{strings_bytes}", offset_bytes=52
        )
    name_pointers = _config_pointers(raw, layout.CONFIG_NAMES_OFFSET)
    data_pointers = _config_pointers(raw, layout.CONFIG_DATA_OFFSET)
    rows = _device_rows(raw)
    strings = _resolve(
        memoryview(raw)[strings_offset : strings_offset + strings_bytes],
        {*name_pointers, *data_pointers, *(pointer for _, pointer, _ in rows)},
    )
    configs = _decode_configs(zip(name_pointers, data_pointers, strict=False), strings)
    devices = _decode_devices(rows, strings)
    if not configs and not devices:
        raise VmaError("vma contains neither a configuration nor a device")
    check_names(configs, devices)
    return VmaHeader(
        uuid=uuid, ctime_s=ctime_s, header_bytes=header_bytes, configs=configs, devices=devices
    )


def md5_digest(data: bytes | bytearray | memoryview) -> bytes:
    """MD5 as the format uses it: against damage, not against malice."""
    return hashlib.md5(data, usedforsecurity=False).digest()


def check_names(configs: Sequence[ConfigBlob], devices: Sequence[VmaDevice]) -> None:
    """Raise VmaError unless every name is safe and no two files of an extraction collide."""
    taken: set[str] = set()
    for device in devices:
        _check_name(device.name, what="device")
        if device.file_name in taken:
            raise VmaError(f"vma contains two devices named '{device.name}'")
        taken.update((device.file_name, device.temp_file_name))
    for config in configs:
        _check_name(config.name, what="configuration")
        if config.name in taken:
            raise VmaError(f"vma configuration '{config.name}' has the name of another file")
        taken.add(config.name)


def _check_name(name: str, *, what: str) -> None:
    """Refuse what could leave the folder of an extraction or upset a terminal."""
    unprintable = not (name.isascii() and name.isprintable()) and any(
        unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in name
    )
    if name in ("", ".", "..") or "/" in name or unprintable:
        raise VmaError(f"vma contains unsafe {what} name {ascii(name)[:80]}")


def _check_configs_to_write(configs: Sequence[ConfigBlob]) -> None:
    if len(configs) > layout.CONFIG_SLOT_COUNT:
        raise VmaError(f"vma cannot hold {len(configs)} configurations")
    for config in configs:
        if len(config.data) > layout.CONFIG_BYTES_MAX:
            raise VmaError(
                f"vma configuration '{config.name}' of {len(config.data)} bytes is over "
                f"{layout.CONFIG_BYTES_MAX}"
            )


def _check_devices_to_write(devices: Sequence[VmaDevice]) -> None:
    if len(devices) > layout.VMA_DEV_ID_MAX:
        raise VmaError(f"vma cannot hold {len(devices)} devices, only {layout.VMA_DEV_ID_MAX}")
    if len({device.vma_dev_id for device in devices}) != len(devices):
        raise VmaError("vma device numbers are not unique")
    for device in devices:
        if not 1 <= device.vma_dev_id <= layout.VMA_DEV_ID_MAX:
            raise VmaError(f"vma device number {device.vma_dev_id} out of range")
        if device.size_bytes <= 0:
            raise VmaError(f"vma device '{device.name}' has no content")
        _check_size(device)


def _check_size(device: VmaDevice) -> None:
    if device.is_vmstate:
        return
    if device.size_bytes % SECTOR_BYTES:
        raise VmaError(
            f"vma device '{device.name}' has size {device.size_bytes}, "
            f"no multiple of {SECTOR_BYTES}"
        )
    if device.vma_cluster_count > layout.VMA_CLUSTER_COUNT_MAX:
        raise VmaError(f"vma device '{device.name}' is too large ({device.size_bytes} bytes)")


class _Strings:
    """The buffer of names and configurations while it grows.

    Known writers reserve whole sectors for each string that does not fit what is reserved, so
    their headers can be longer than the strings need; headers made here are as long as theirs.
    """

    def __init__(self) -> None:
        self.buffer = bytearray(1)
        self.reserved_bytes = 0

    def append(self, value: bytes) -> int:
        """Append a string and return its pointer."""
        if len(value) > layout.CONFIG_BYTES_MAX:
            raise VmaError(f"vma cannot hold a name of {len(value)} bytes")
        pointer = len(self.buffer)
        encoded = layout.LENGTH_STRUCT.pack(len(value)) + value
        self.buffer += encoded
        if len(self.buffer) > self.reserved_bytes:
            self.reserved_bytes += round_up(len(encoded), layout.HEADER_ALIGNMENT_BYTES)
            # The pad byte in front is not part of any string: without this a first string of
            # 510 bytes would stick out by one.
            self.reserved_bytes = max(
                self.reserved_bytes, round_up(len(self.buffer), layout.HEADER_ALIGNMENT_BYTES)
            )
        return pointer


def _config_pointers(raw: bytes, offset: int) -> tuple[int, ...]:
    """One table of pointers at least up to its last used slot: one is used if it is so in both."""
    table = _without_blank_rows(raw[offset : offset + layout.POINTER_TABLE_BYTES])
    return tuple(pointer for (pointer,) in layout.POINTER_STRUCT.iter_unpack(table))


def _without_blank_rows(table: bytes) -> bytes:
    """Halve a table of 256 rows as often as that loses only zeroes: nearly all is unused."""
    row_bytes = len(table) // 256
    while len(table) > row_bytes and table.endswith(bytes(len(table) // 2)):
        table = table[: len(table) // 2]
    return table


def _device_rows(raw: bytes) -> list[tuple[int, int, int]]:
    """Rows (number, name pointer, size) of the device table; numbers 0 and 255 are ignored."""
    table = _without_blank_rows(raw[layout.DEVICE_TABLE_OFFSET : layout.FIXED_HEADER_BYTES])
    rows = layout.DEVICE_STRUCT.iter_unpack(table)
    return [
        (vma_dev_id, pointer, size_bytes)
        for vma_dev_id, (pointer, size_bytes) in enumerate(rows)
        if 1 <= vma_dev_id <= layout.VMA_DEV_ID_MAX and (pointer or size_bytes)
    ]


def _resolve(buffer: memoryview, wanted: set[int]) -> dict[int, bytes]:
    """Contents at the wanted pointers; a pointer that hits no start is left out.

    Only wanted ones are kept: a buffer of zeroes has a start at every second byte.
    """
    found: dict[int, bytes] = {}
    at = 1
    while at + layout.LENGTH_STRUCT.size <= len(buffer):
        (length,) = layout.LENGTH_STRUCT.unpack_from(buffer, at)
        begin = at + layout.LENGTH_STRUCT.size
        if begin + length > len(buffer):
            break
        if at in wanted:
            found[at] = bytes(buffer[begin : begin + length])
        at = begin + length
    return found


def _decode_name(raw: bytes | None) -> str | None:
    """A name without its final NUL; None where it is missing or has no final NUL.

    Raises: VmaError: not UTF-8.
    """
    if raw is None or not raw.endswith(b"\0"):
        return None
    try:
        return raw[:-1].decode("utf-8")
    except UnicodeDecodeError:
        raise VmaError(f"vma contains a name that is not UTF-8: {ascii(raw[:-1])[:80]}") from None


def _decode_configs(
    slots: Iterable[tuple[int, int]], strings: Mapping[int, bytes]
) -> tuple[ConfigBlob, ...]:
    """Used configuration slots; a repetition of name and content counts once."""
    configs: dict[str, ConfigBlob] = {}
    for name_pointer, data_pointer in slots:
        if not name_pointer or not data_pointer:
            continue
        name = _decode_name(strings.get(name_pointer))
        data = strings.get(data_pointer)
        if name is None or data is None:
            raise VmaError("vma contains invalid data pointers")
        config = configs.setdefault(name, ConfigBlob(name=name, data=data))
        if config.data != data:
            raise VmaError(f"vma contains two configurations named {ascii(name)[:80]}")
    return tuple(configs.values())


def _decode_devices(
    rows: Sequence[tuple[int, int, int]], strings: Mapping[int, bytes]
) -> tuple[VmaDevice, ...]:
    """Devices with a size and a name; other rows do not count, as no extent may refer to them."""
    devices = []
    for vma_dev_id, pointer, size_bytes in rows:
        name = _decode_name(strings.get(pointer))
        if name is None or not size_bytes:
            continue
        device = VmaDevice(vma_dev_id=vma_dev_id, name=name, size_bytes=size_bytes)
        _check_size(device)
        devices.append(device)
    return tuple(devices)
