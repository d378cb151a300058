"""The table at the end of an exploration, as plain text."""

from __future__ import annotations

from collections import Counter

from vzsim.explore import Tally, first_tokens
from vzsim.run_lists import ExploreOptions

_VIOLATION_GROUPS_MAX = 40
_COLUMNS = 3


def render_heading(options: ExploreOptions) -> str:
    """What is about to be explored, in one line."""
    seeds = f"seeds {options.first_seed} to {options.first_seed + options.seed_count - 1}"
    lists = ("", ", every single fault", ", every single fault and pairs in the focus")
    return (
        f"system {options.system}; {len(options.scenarios)} scenarios; "
        f"{seeds if options.seed_count else 'no seeds'}{lists[min(options.exhaustive, 2)]}"
    )


def render_tally(tally: Tally) -> str:
    """Runs, faults per kind and site, sites never hit, violations with a token each."""
    seconds = max(tally.real_s, 1e-9)
    lines = [
        f"runs                {tally.run_count}",
        f"backups simulated   {tally.backup_count}  ({tally.backup_count / seconds:.0f}/s)",
        f"simulated time      {tally.simulated_s / 3600:.1f} h"
        f"  ({tally.simulated_s / seconds:.0f} times real time)",
        f"endings             {_inline(tally.endings)}",
        "",
        f"faults injected: {sum(tally.kinds.values())}, per kind",
        *_block(tally.kinds),
        "",
        "per site",
        *_block(tally.sites),
    ]
    never = sorted(tally.known_sites - set(tally.sites))
    lines += ["", f"sites never hit: {', '.join(never) or 'none'}"]
    groups = first_tokens(tally.violations)
    lines += ["", f"violations: {len(tally.violations)} in {len(groups)} groups"]
    for count, token, text in groups[:_VIOLATION_GROUPS_MAX]:
        lines += [f"  {count:5d} x {text}", f"          {token.render()}"]
    return "\n".join(lines) + "\n"


def _inline(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _block(counts: Counter[str]) -> list[str]:
    cells = [f"{name:32.32} {count:6d}" for name, count in sorted(counts.items())]
    rows = [cells[at : at + _COLUMNS] for at in range(0, len(cells), _COLUMNS)]
    return ["  " + "   ".join(row) for row in rows]
