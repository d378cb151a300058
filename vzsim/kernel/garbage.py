"""How often Python looks for circular garbage while a simulation runs, and between two.

Owns the settings of the collector. Many small objects live for an instant and few form circles, so
that by default a tenth of the time goes into looking at them.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# A run makes about as many that stay; one that makes more still does not grow without bound.
_OBJECT_COUNT = 50_000
# What is left over from run to run: some twenty runs, each with the disks of its guest.
_LEFT_COUNT = 5_000


@contextmanager
def collecting_seldom() -> Iterator[None]:
    """Within it the collector looks seldom; what piled up is found after some runs, or one."""
    first, second, third = gc.get_threshold()
    gc.set_threshold(max(first, _OBJECT_COUNT) if first else 0, second, third)
    try:
        yield
    finally:
        gc.set_threshold(first, second, third)


def keep_all() -> None:
    """What is there now stays for good, and runs follow: the collector looks at the rest seldom."""
    gc.collect()
    gc.freeze()
    first, second, third = gc.get_threshold()
    gc.set_threshold(max(first, _LEFT_COUNT) if first else 0, second, third)
