"""Importing a mutant: one module's source is edited in memory on its way in, no file is touched."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import CodeType, ModuleType

from tests.mutants.catalogue import Mutant, StaleMutant, mutate


class _MutatingLoader(importlib.machinery.SourceFileLoader):
    """Compiles the mutated source; cached byte code is neither read nor written."""

    def __init__(self, fullname: str, path: str, mutant: Mutant) -> None:
        super().__init__(fullname, path)
        self._mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        source = importlib.util.decode_source(self.get_data(path))
        return compile(mutate(source, self._mutant), path, "exec", dont_inherit=True)


class _MutatingFinder(MetaPathFinder):
    """Finds one module, wherever the ordinary finders have it."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant
        self._searching = False

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._mutant.module or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching = False
        if spec is None or spec.origin is None:
            raise StaleMutant(f"mutant {self._mutant.name}: no module {fullname}")
        spec.loader = _MutatingLoader(fullname, spec.origin, self._mutant)
        return spec


def plant(mutant: Mutant) -> None:
    """From now on this process imports the mutated module. Raises StaleMutant if it is too late."""
    if mutant.module in sys.modules:
        raise StaleMutant(f"mutant {mutant.name}: {mutant.module} is imported already")
    sys.meta_path.insert(0, _MutatingFinder(mutant))
