"""G2 as the guest sees it: a restored machine finds its file system as one instant left it.

The archive's disks are mounted as the guest would mount them. Always (crash consistency): every
transaction that was flushed before the point in time is there whole, none that began later is,
and all disks stand at the same one. Where the tool says frozen, or the guest had put everything
in order itself (frozen, shut down): nothing is to be replayed.
"""

from __future__ import annotations

from collections.abc import Sequence

from vzdump_qemu.errors import VmaError
from vzsim.evidence import Evidence
from vzsim.world.guest_files import Bytes, replay
from vzsim.world.writer import GuestMark


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    found = [
        f"the guest finds its own disks damaged: {text}" for text in evidence.observed.writes.damage
    ]
    mark = evidence.observed.guest_mark
    if mark is None:
        return found
    for path in evidence.archive_paths():
        try:
            disks = evidence.restore(path)
        except VmaError:
            continue  # archive_whole says so
        if not set(mark.device_ids) <= set(disks):
            continue
        images = [disks[device_id] for device_id in mark.device_ids]
        place = path or "standard output"
        found += [
            f"{place}: {text}"
            for text in judge_images(images, mark, says_frozen=evidence.says_frozen)
        ]
    return found


def judge_images(images: Sequence[Bytes], mark: GuestMark, *, says_frozen: bool) -> list[str]:
    """What a guest that is started from these disks would miss or find too much.

    Args:
        images: in the order of the mark's devices.
        mark: what the guest knew at the instant that the images are said to stand for.
    """
    mounted = replay(images)
    found = list(mounted.faults)
    if not mounted.pages:
        return found
    if mounted.last_seq < mark.acknowledged_seq:
        found.append(
            f"transaction {mark.acknowledged_seq} was flushed before the point in time, "
            f"the disks end with {mounted.last_seq}"
        )
    if mounted.last_seq > mark.begun_seq:
        found.append(
            f"transaction {mounted.last_seq} began after the point in time, "
            f"the last one then was {mark.begun_seq}"
        )
    for key, versions in mark.versions.items():
        # Oldest first, and most often the last is the one.
        wanted = versions[-1]
        if wanted.seq > mounted.last_seq:
            wanted = next(each for each in reversed(versions) if each.seq <= mounted.last_seq)
        have = mounted.pages.get(key)
        if have is not None and have != wanted and have.seq <= mounted.last_seq:
            disk_index, page_index = key
            found.append(
                f"page {page_index} of disk {disk_index} is of transaction {have.seq}, "
                f"the state after {mounted.last_seq} has {wanted.seq}"
            )
    if mounted.needs_replay and says_frozen:
        found.append("frozen is said, the file system is not clean")
    elif mounted.needs_replay and mark.is_quiet:
        found.append("the guest had put its file system in order, the archive has it unclean")
    return found
