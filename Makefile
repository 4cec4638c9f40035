# make demo    set up what the demo needs, and run the main job on real data
# make test    set everything up and run all tests
# make quick   the tests of the surface and of the core's main paths, in under a minute
# make bench   the figures of the README and docs, beside their yardsticks
# make peers   other ways to share pages, beside the pool
# make docs    the documentation as a site, in build/site
# make coverage   the lines and branches of the package and of its core that tests reach, with a floor; reports in build/coverage
# make integrations   the tests of what connects the pool to other libraries, with these libraries (some 600 MB)
# make soak    the long forms of the tests
# make lab     the tests on the kernels, cgroups and machines of users, in guests of qemu; LAB="--kernels 6.1 --groups core" takes a part
# make free-threaded   the tests with threads on a CPython without the GIL, which it builds (Debian) or finds in FREE_THREADED_PYTHON
# make dist    the sdist and a wheel for this interpreter in dist/, checked
# make examples   the workloads of examples/workloads, with their pictures in IMAGES
#
# The first run needs the package index; later ones work offline.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
IMAGES ?= build/images
WORKLOADS := shared_cache vector_search elastic scan_resistance ycsb tpcc_lite hotplug client_disconnect tile_server remote_files torch_samples
SOURCES := setup.py $(wildcard bufferpool/core/*/*)

# What `make quick` runs: the surface, and one file for each main path of the core.
QUICK := import docs pages pins write append spaces scratch derived files flush stores \
	memory compaction bad_input events observer
QUICK_FILES = $(foreach name,$(QUICK),$(wildcard tests/test_$(name).py tests/*/test_$(name).py))

.PHONY: all demo examples test quick integrations coverage soak lab bench peers docs lint clean free-threaded dist

all: $(VENV)/.built $(VENV)/.installed

# The package, and what it needs to be built: all that the demo takes.
$(VENV)/.created: pyproject.toml
	@echo "Setting up $(VENV): a virtual environment with numpy and prometheus-client."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --group build
	touch $@

$(VENV)/.built: $(VENV)/.created $(SOURCES)
	@echo "Compiling the core of bufferpool."
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-build-isolation --editable .
	touch $@

# What the tests, the examples and the checks of style need besides.
$(VENV)/.installed: pyproject.toml | $(VENV)/.built
	@echo "Installing what the tests need."
	$(BIN)/python -m pip install --quiet --group test --group dashboards --group docs 'bufferpool[toydb]'
	touch $@

demo: $(VENV)/.built
	$(BIN)/bufferpool replay --demo

examples: all
	mkdir -p $(IMAGES)
	for name in $(WORKLOADS); do \
		$(BIN)/python examples/workloads/$$name.py --plot $(IMAGES)/$$name.png || exit 1; done

# The tests start thousands of processes, and a third of their time was compiling the package's Python files where the environment
# forbids to keep the result. It is kept in build/.
export PYTHONPYCACHEPREFIX := $(CURDIR)/build/bytecode
unexport PYTHONDONTWRITEBYTECODE

# One process of pytest more than processors, because many tests wait; tests that share a costly fixture run in one of them
# (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -n $(shell expr $$(nproc) + 1)

test: all lint
	$(PYTEST)

quick: all
	$(PYTEST) $(QUICK_FILES)

$(VENV)/.coverage: $(VENV)/.installed pyproject.toml
	$(BIN)/python -m pip install --quiet --group coverage
	touch $@

# All but the tests that compile the core for themselves, that look at what a process imports, and those of the documentation
# and of the examples.
UNCOUNTED := $(foreach name,explore weak no_memory sanitizers killpoints object_killpoints holds storm damage docs tidy typing imports,\
	$(wildcard tests/test_$(name).py tests/*/test_$(name).py))
COUNTED := $(filter-out $(UNCOUNTED) tests/toydb/% tests/examples/%,$(wildcard tests/test_*.py tests/*/test_*.py))

coverage: all $(VENV)/.coverage
	sh tools/coverage.sh build/coverage $(BIN)/python $(COUNTED)

soak: all
	$(BIN)/python -m pytest -m soak

# It needs root, and packages of Debian (docs/lab.md); what it fetches lies in ~/.cache/bufferpool-lab.
#     apt-get install --no-install-recommends cpio debootstrap e2fsprogs g++-aarch64-linux-gnu git qemu-system-arm qemu-system-x86
LAB ?=
lab: all
	$(BIN)/python -m lab $(LAB)

$(VENV)/.integrations: $(VENV)/.installed pyproject.toml
	$(BIN)/python -m pip install --quiet --group integrations
	touch $@

integrations: all $(VENV)/.integrations
	$(PYTEST) tests/integrations tests/test_docs.py

$(VENV)/.bench: $(VENV)/.installed pyproject.toml
	$(BIN)/python -m pip install --quiet --group bench
	touch $@

bench: all $(VENV)/.bench
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/policy.py --plots build/miss-ratio
	$(BIN)/python benchmarks/advice.py

$(VENV)/.peers: $(VENV)/.installed pyproject.toml
	$(BIN)/python -m pip install --quiet --group peers --group integrations
	touch $@

peers: all $(VENV)/.peers
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/remote.py
	$(BIN)/python benchmarks/cache_peers.py
	$(BIN)/python benchmarks/framework_peers.py

docs: all
	$(BIN)/sphinx-build -q -W --keep-going docs build/site
	@echo "The site is in build/site/index.html."

# An interpreter without the GIL, and what several threads do to the core and the package.
FREE := build/free-threaded
FREE_THREADED_PYTHON ?=
THREADED := threads many_at_once pages pins pin_many write append failed_loads deadlocks holds close outlive fork_threads storm
THREADED_FILES = $(foreach name,$(THREADED),$(wildcard tests/*/test_$(name).py))

free-threaded:
	sh tools/free_threaded.sh $(FREE) $(FREE_THREADED_PYTHON)
	$(FREE)/venv/bin/python setup.py --quiet build_ext --inplace
	PYTHONPATH=$(CURDIR) $(FREE)/venv/bin/python -m pytest $(THREADED_FILES)

$(VENV)/.dist: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --group dist
	touch $@

dist: $(VENV)/.dist
	rm -rf dist
	$(BIN)/validate-pyproject pyproject.toml
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/python tools/check_dist.py dist
	$(BIN)/auditwheel show dist/*.whl

lint: all
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks
	$(BIN)/stubtest bufferpool._core --mypy-config-file pyproject.toml

clean:
	rm -rf $(VENV) build *.egg-info bufferpool/*.so
