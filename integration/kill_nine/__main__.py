"""``python -m integration.kill_nine --count 100``: kill as many backups as one likes."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import click

from integration.guest import build_guest
from integration.kill_nine.killing import Kill, kill_backups, wait_for_room
from integration.probes import why_no_kvm
from integration.real_lab import RealLab
from integration.scenario import WritingGuest

_BOOT_EVERY = 10


@click.command()
@click.option("--count", default=100, show_default=True, help="backups to kill.")
@click.option("--seed", default=1, show_default=True, help="of the moments.")
def main(count: int, seed: int) -> None:
    """Kill backups of one writing guest with SIGKILL at random moments."""
    with tempfile.TemporaryDirectory(prefix="vzk-", dir="/tmp") as name:
        files = build_guest(Path(name))
        accelerator = "tcg" if why_no_kvm("qemu-system-x86_64", files) else "kvm"
        lab = RealLab(Path(name) / "lab", accelerator=accelerator)
        guest = WritingGuest(lab, files)
        kills: list[Kill] = []
        numbers = itertools.count(1)
        try:
            guest.create()
            guest.start()
            for first in range(0, count, _BOOT_EVERY):
                wait_for_room(guest)
                kills += kill_backups(
                    guest,
                    count=min(_BOOT_EVERY, count - first),
                    seed=seed * 1000 + first,
                    tell=lambda text: click.echo(f"{next(numbers)}: {text}"),
                )
        finally:
            if lab.root.exists():
                lab.must("lab", "destroy", lab.root)
    in_time = [kill for kill in kills if kill.was_in_time]
    longest_s = max(kill.writing_again_s for kill in kills)
    click.echo(
        f"{len(kills)} kills, {len(in_time)} of them amid a backup; all put back, every next "
        f"backup good; the guest wrote again after at most {longest_s:.2f} s"
    )


if __name__ == "__main__":
    main()
