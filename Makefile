# make demo    set everything up and run the main job on real data
# make test    set everything up and run all tests
# make bench   the figures of the README and docs, beside their yardsticks
# make peers   other ways to share pages, beside the pool
# make soak    the long forms of the tests
# make examples   the workloads of examples/workloads, with their pictures in IMAGES
#
# The first run needs the package index; later ones work offline.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
IMAGES ?= build/images
WORKLOADS := shared_cache elastic scan_resistance ycsb tpcc_lite hotplug client_disconnect
SOURCES := setup.py $(wildcard bufferpool/core/*)

.PHONY: all demo examples test soak bench peers lint clean

all: $(VENV)/.built

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --group build --group test --group dashboards
	touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[toydb]'
	touch $@

demo: all
	$(BIN)/bufferpool replay --demo

examples: all
	mkdir -p $(IMAGES)
	for name in $(WORKLOADS); do \
		$(BIN)/python examples/workloads/$$name.py --plot $(IMAGES)/$$name.png || exit 1; done

test: all lint
	$(BIN)/python -m pytest

soak: all
	$(BIN)/python -m pytest -m soak

$(VENV)/.bench: $(VENV)/.installed pyproject.toml
	$(BIN)/python -m pip install --quiet --group bench
	touch $@

bench: all $(VENV)/.bench
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/policy.py --plots build/miss-ratio
	$(BIN)/python benchmarks/advice.py

$(VENV)/.peers: $(VENV)/.installed pyproject.toml
	$(BIN)/python -m pip install --quiet --group peers
	touch $@

peers: all $(VENV)/.peers
	$(BIN)/python benchmarks/peers.py

lint: all
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/stubtest bufferpool._core --mypy-config-file pyproject.toml

clean:
	rm -rf $(VENV) build *.egg-info bufferpool/*.so
