"""Archives of the real writers, whole and damaged, with the verdicts of the real tools."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.stores.extracting import extract_archive
from tests.stores.packing import pack_raw_files
from vzdump_qemu.errors import BackupError, VmaError
from vzdump_qemu.formats.vma import VmaWriter
from vzdump_qemu.stores.archive_reading import list_archive, verify_archive

DATA = Path(__file__).parents[1] / "data"
GOLDEN = sorted(path.stem for path in (DATA / "vma").glob("*.json"))
BROKEN = sorted(path.stem for path in (DATA / "vma-broken").glob("*.json"))

# Golden archives we refuse though the real `verify` or writer was content, and why.
REFUSED_GOLDEN = {
    "create-nothing": "wrong vma header size",
    "create-same-name-twice": "two devices named",
    "create-writer-bug-513": "wrong vma blob buffer size",
    "qemu-incomplete-cancel": "detected missing cluster 58",
    "qemu-incomplete-quit": "detected missing cluster 58",
}

PACKABLE = [
    name
    for name in GOLDEN
    if name.startswith("create-") and "vmstate" not in name and name not in REFUSED_GOLDEN
]

# Damaged archives the real tool accepts and we refuse, and why.
STRICTER = {
    "config-name-dotdot": "leaves the folder",
    "config-name-dotdot-deep": "leaves the folder",
    "config-name-escape": "control byte in a name",
    "config-name-newline": "control byte in a name",
    "config-name-not-utf8": "name is no text",
    "configs-same-name": "one name, two contents: one would be lost",
    "device-name-embedded-nul": "control byte in a name",
    "device-name-empty": "control byte in a name (NUL in front)",
    "device-name-escape": "control byte in a name",
    "device-name-newline": "control byte in a name",
    "device-name-not-utf8": "name is no text",
    "device-name-vmstate": "control bytes in a name (padded with NUL)",
    "device-size-minus-1": "size is no multiple of 512: the real tool loses its tail",
    "random-009": "name is no text",
    "random-028": "size is no multiple of 512",
    "slot-cluster-63-empty": "cluster behind the end, an accident of groups of 64 when accepted",
    "slot-cluster-one-beyond-empty": "cluster behind the end",
    "tail-size-not-sector": "size is no multiple of 512",
}


def load(folder: str, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DATA / folder / f"{name}.json").read_text("utf-8"))
    return content


def renew_md5(data: bytearray, begin: int, length: int, field: int) -> None:
    data[field : field + 16] = bytes(16)
    data[field : field + 16] = hashlib.md5(data[begin : begin + length]).digest()


def apply_step(data: bytearray, kind: str, value: Any) -> None:
    match kind:
        case "truncate":
            del data[value:]
        case "append":
            data += bytes.fromhex(value)
        case "append_copy":
            data += data[value[0] : value[0] + value[1]]
        case "insert":
            data[value[0] : value[0]] = bytes.fromhex(value[1])
        case "insert_zeros":
            data[value[0] : value[0]] = bytes(value[1])
        case "delete":
            del data[value[0] : value[0] + value[1]]
        case _:
            raise ValueError(kind)


def damaged(variant: dict[str, Any]) -> bytes:
    data = bytearray((DATA / "vma" / variant["base"]).read_bytes())
    for step in variant["patch"]:
        if isinstance(step, list):
            new = bytes.fromhex(step[1])
            data[step[0] : step[0] + len(new)] = new
        else:
            [(kind, value)] = step.items()
            apply_step(data, kind, value)
    if variant.get("fix_md5") and len(data) >= 12288:
        (header_bytes,) = struct.unpack_from(">I", data, 56)
        if 12288 <= header_bytes <= len(data):
            renew_md5(data, 0, header_bytes, 32)
        places = variant.get("extents_at")
        if places is None:
            places, at = [], header_bytes
            while at + 512 <= len(data) and data[at : at + 4] == b"VMAE":
                places.append(at)
                at += 512 + 4096 * struct.unpack_from(">H", data, at + 6)[0]
        for at in places:
            if at + 512 <= len(data):
                renew_md5(data, at, 512, at + 24)
    assert hashlib.sha256(data).hexdigest() == variant["sha256"]
    return bytes(data)


def sums_of(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()
    }


@pytest.mark.parametrize("name", sorted(set(GOLDEN) - set(REFUSED_GOLDEN)))
def test_extract_golden_archive_gives_recorded_files(name: str, tmp_path: Path) -> None:
    golden = load("vma", name)
    path = str(DATA / "vma" / golden["file"])
    report = extract_archive(path, str(tmp_path / "out"))
    expected = {row["extracted_as"]: row["sha256"] for row in golden["devices"]}
    expected |= {row["name"]: row["sha256"] for row in golden["configs"]}
    assert sums_of(tmp_path / "out") == expected
    assert report.stream_bytes == golden["archive_size"]
    assert [
        (tally.device.vma_dev_id, tally.device.name, tally.device.size_bytes)
        for tally in report.tallies
    ] == [(row["id"], row["name"], row["size"]) for row in golden["devices"]]
    assert [
        (tally.vma_cluster_count, tally.zero_cluster_count, tally.stored_block_count)
        for tally in report.tallies
    ] == [
        (row["clusters_in_archive"], row["zero_clusters"], row["stored_blocks"])
        for row in golden["devices"]
    ]
    header = list_archive(path).header
    assert header == report.header
    assert header.ctime_s == golden["ctime"]
    assert header.uuid.hex() == golden["uuid"].replace("-", "")
    assert header.header_bytes == golden["header_size"]


@pytest.mark.parametrize("name", sorted(REFUSED_GOLDEN))
def test_golden_archive_that_cannot_be_extracted_is_refused(name: str, tmp_path: Path) -> None:
    path = str(DATA / "vma" / load("vma", name)["file"])
    with pytest.raises(VmaError, match=REFUSED_GOLDEN[name]):
        verify_archive(path)
    with pytest.raises(VmaError, match=REFUSED_GOLDEN[name]):
        extract_archive(path, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", PACKABLE)
def test_disks_of_golden_archive_packed_again_are_the_same(name: str, tmp_path: Path) -> None:
    golden = load("vma", name)
    out, packed = tmp_path / "out", tmp_path / "packed.vma"
    report = extract_archive(str(DATA / "vma" / golden["file"]), str(out))
    header = report.header
    pack_raw_files(
        packed,
        {row["name"]: out / row["extracted_as"] for row in golden["devices"]},
        configs=header.configs,
        uuid=header.uuid,
        ctime_s=header.ctime_s,
    )
    again = extract_archive(str(packed), str(tmp_path / "again"))
    assert again.tallies == report.tallies
    assert again.header == header
    assert sums_of(tmp_path / "again") == sums_of(out)


# Order and grouping of vma_clusters are settled only with a single disk.
@pytest.mark.parametrize(
    "name", [name for name in PACKABLE if len(load("vma", name)["devices"]) <= 1]
)
def test_writer_given_a_golden_archives_disk_gives_the_same_bytes(
    name: str, tmp_path: Path
) -> None:
    golden = load("vma", name)
    report = extract_archive(str(DATA / "vma" / golden["file"]), str(tmp_path / "out"))
    header = report.header
    writer = VmaWriter(header.uuid, header.ctime_s, header.configs, header.devices)
    parts = [writer.header_bytes()]
    for row in golden["devices"]:
        data = (tmp_path / "out" / row["extracted_as"]).read_bytes()
        parts += writer.add_clusters(1, 0, data)
    parts += writer.finish()
    assert hashlib.sha256(b"".join(parts)).hexdigest() == golden["archive_sha256"]


@pytest.mark.parametrize("name", BROKEN)
def test_damaged_archive_gets_a_verdict_as_strict_as_the_real_tools(
    name: str, tmp_path: Path
) -> None:
    variant = load("vma-broken", name)
    path = tmp_path / "damaged"
    path.write_bytes(damaged(variant))
    verdict = variant["verdict"]
    if variant["class"].startswith("accepted"):
        accepted = name not in STRICTER
    elif variant["class"] == "compressed":
        accepted = verdict["decompress"] == "ok" and verdict["extract"] == "ok"
    else:
        accepted = False
    out = tmp_path / "deep" / "er" / "out"
    out.parent.mkdir(parents=True)
    if accepted:
        verify_archive(str(path))
        extract_archive(str(path), str(out))
        expected = {
            Path(row["path"]).relative_to("out").as_posix(): row["sha256"]
            for row in variant["details"]["extract"].get("files", [])
        }
        if variant["class"] != "compressed":
            assert sums_of(out) == expected
        return
    with pytest.raises(VmaError) as refusal:
        verify_archive(str(path))
    assert str(refusal.value).isprintable()
    with pytest.raises(BackupError):
        extract_archive(str(path), str(out))
    assert [one.name for one in out.parent.iterdir()] == []
