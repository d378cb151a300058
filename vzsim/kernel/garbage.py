"""How often Python looks for circular garbage while a simulation runs.

Owns two settings of the collector. Many small objects live for an instant and few form circles, so
that by default a tenth of the time goes into looking at them.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# A run makes about as many that stay; one that makes more still does not grow without bound.
_OBJECT_COUNT = 50_000


@contextmanager
def collecting_seldom() -> Iterator[None]:
    """Within it the collector looks seldom; what piled up is found right after."""
    first, second, third = gc.get_threshold()
    gc.set_threshold(max(first, _OBJECT_COUNT) if first else 0, second, third)
    try:
        yield
    finally:
        gc.set_threshold(first, second, third)


def keep_all() -> None:
    """What is there now stays for good: the collector need not look at it again."""
    gc.collect()
    gc.freeze()
