"""The machinery of the mutation suite; the whole suite is ``make mutants``."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.catalogue import Edit, Mutant, StaleMutant, load_catalogue, mutate
from tests.mutants.loading import plant
from tests.mutants.trial import key_of

ROOT = Path(__file__).resolve().parents[2]
SOURCE = """class A:
    def f(self):
        self.lock()
        self.work()

    def g(self):
        self.lock()
"""


def _mutant(within: str, old: str, new: str = "pass", module: str = "nowhere") -> Mutant:
    edit = Edit(within=within, old=old, new=new)
    return Mutant(name="m", removes="something", module=module, edits=(edit,))


def test_edit_is_confined_to_the_function_it_names() -> None:
    mutated = mutate(SOURCE, _mutant("A.f", "self.lock()"))
    assert mutated == SOURCE.replace("self.lock()", "pass", 1)


@pytest.mark.parametrize(
    ("within", "old", "new"),
    [
        ("A.f", "unlock", "pass"),
        ("A", "self.lock()", "pass"),
        ("A.h", "self.lock()", "pass"),
        ("A.f", "self.work()", "self.work("),
    ],
)
def test_mutant_that_does_not_fit_is_named(within: str, old: str, new: str) -> None:
    with pytest.raises(StaleMutant, match="mutant m: "):
        mutate(SOURCE, _mutant(within, old, new))


def test_every_mutant_of_the_catalogue_fits_the_source() -> None:
    catalogue = load_catalogue()
    assert len(catalogue) >= 40
    for mutant in catalogue.values():
        spec = importlib.util.find_spec(mutant.module)
        assert spec is not None and spec.origin is not None
        source = Path(spec.origin).read_text(encoding="utf-8")
        assert mutate(source, mutant) != source


def test_module_that_is_imported_already_cannot_be_mutated() -> None:
    with pytest.raises(StaleMutant, match="imported already"):
        plant(_mutant("", "x", module="tests.mutants.loading"))


def test_violations_that_differ_in_figures_are_the_same() -> None:
    assert key_of("a/1/x", "frozen for 3.1 s") == key_of("a/27/y", "frozen for 12.7 s")
    assert key_of("a/1/x", "frozen for 3.1 s") != key_of("b/1/x", "frozen for 3.1 s")


def _try(name: str, *scenarios: str) -> list[dict[str, str | int]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutants.trial", name, "500", *scenarios],
        input="",
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    found: list[dict[str, str | int]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scenario", "checker"),
    [
        ("thaw-only-if-job-started", "snapshot-running", "guest-freeze"),
        ("partial-file-kept", "snapshot-plain-file", "left-overs"),
        ("recovery-skips-unlock", "snapshot-stopped", "left-overs"),
    ],
)
def test_mutant_is_found_in_few_seeds(name: str, scenario: str, checker: str) -> None:
    finding = _try(name, scenario)[0]
    assert str(finding["text"]).startswith(f"{checker}: ")
    assert str(finding["token"]).startswith(f"{scenario}/{finding['seed_count']}/")
