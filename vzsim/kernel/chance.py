"""Seeded chance: one root seed, one independent stream per named component.

Owns the derivation of sub-seeds, so that a component that draws more does not change what the
others draw. Nothing here depends on hash seeds, addresses or set order.
"""

from __future__ import annotations

import hashlib
import random


class Chance:
    """A tree of seeded random streams."""

    __slots__ = ("_path", "_seed")

    def __init__(self, seed: int, path: str = "") -> None:
        self._seed = seed
        self._path = path

    def of(self, component: str) -> Chance:
        """The branch of one component; the same name always gives the same branch."""
        return Chance(self._seed, f"{self._path}/{component}")

    def stream(self) -> random.Random:
        """A fresh generator at the start of this branch's stream."""
        text = f"{self._seed}:{self._path}".encode()
        return random.Random(hashlib.sha256(text).digest())
