# The two commands of the README, on a machine with nothing but Python 3.11+ and make, and a few
# more for developers. Each makes its own virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SIM := --exhaustive --exhaustive --seeds 2000 --jobs 2

.PHONY: demo test sim lint type integration soak mutants benchmarks man deb clean

demo: $(VENV)/ready-run
	$(BIN)/python -m vzdump_qemu.cli.demo

test: $(VENV)/ready-test
	$(BIN)/python -m pytest -n 2 tests
	$(BIN)/vzsim explore $(SIM)

# Every fault at every site, pairs in the freeze window and at publishing, and 2,000 seeds.
sim: $(VENV)/ready-test
	$(BIN)/vzsim explore $(SIM)

lint: $(VENV)/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: $(VENV)/ready-test
	$(BIN)/mypy

# Real QEMU, real guests: as root on Debian, with the packages that .ci/run installs.
integration: $(VENV)/ready-test
	$(BIN)/python -m pytest integration

# Simulated backups with faults drawn by seed, each time others, until it is stopped.
soak: $(VENV)/ready-test
	$(BIN)/vzsim explore --seeds 1000000000 --first-seed $$(date +%s)000 --jobs $$(nproc)

# The checkers can see: each protective act taken out in turn, and found out.
mutants: $(VENV)/ready-test
	$(BIN)/python -m tests.mutants

# The manual page, from what --help is made of: man -l build/man/vzdump-qemu.1
man: $(VENV)/ready-run
	mkdir -p build/man
	$(BIN)/python -m vzdump_qemu.cli.manual > build/man/vzdump-qemu.1

# dist/vzdump-qemu_*.deb for Debian 12 or 13, whichever this is; for the other: RELEASE=trixie.
deb: $(VENV)/ready-run
	packaging/debian/build $(BIN)/python $(RELEASE)

benchmarks: $(VENV)/ready-test
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready-run: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/ready-test: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ $(VENV)/ready-run

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .tox
