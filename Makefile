# Every target does its own set-up: a virtual environment in .venv with what that target needs, installed once and
# again whenever pyproject.toml changes. Needs Python 3.11 or newer, make and git; choose a Python with PYTHON=….

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
UV_INSTALL := $(UV) pip install --quiet --python $(BIN)/python

# Neighbours share fixtures, so each process takes a stretch of the tests, and who is done takes half of what another has left.
# A process takes about 2 GB.
TEST_PROCESSES ?= logical
SIDE_BY_SIDE = -n $(TEST_PROCESSES) --maxprocesses 8 --dist worksteal

.PHONY: demo test lint lint-style lint-format lint-types format wheel docs lowest bench equivalence faults clean
.DELETE_ON_ERROR:

## demo: the main job on small images, offline: shard, vectors, cache, distill, evaluate
demo: $(VENV)/.demo
	$(BIN)/teachonce demo $(DEMO_OPTIONS)

## test: all tests, side by side on all cores (TEST_PROCESSES=0 for one after the other); TEST_OPTIONS="-m 'not slow'" for the quick ones
test: $(VENV)/.test
	$(BIN)/pytest $(SIDE_BY_SIDE) $(TEST_OPTIONS)

## lint: style, format and types; lint-style, lint-format and lint-types do one of them
lint: lint-style lint-format lint-types

lint-style: $(VENV)/.lint
	$(BIN)/ruff check .

lint-format: $(VENV)/.lint
	$(BIN)/ruff format --check .

lint-types: $(VENV)/.lint $(VENV)/typing/teachonce
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini
	$(BIN)/mypy --config-file benchmarks/mypy.ini

## format: rewrite the sources as `make lint` wants them
format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

## wheel: build the wheel, install it beside the checkout's own environment, run it from another folder
wheel: $(VENV)/.test
	rm -rf build dist
	$(UV) build --quiet --wheel --python $(BIN)/python --out-dir dist .
	rm -rf build
	bash .ci/try-wheel $(BIN)/python dist

## docs: rewrite the pages that are generated; build the site into site/, where a link that leads nowhere is an error
# (mkdocs is not told to be quiet: it would then not count warnings either)
docs: $(VENV)/.docs
	$(BIN)/python docs/make_cli_reference.py
	$(BIN)/python docs/make_rooms.py
	$(BIN)/python docs/make_error_reference.py
	rm -rf $(VENV)/docs && mkdir -p $(VENV)/docs/teachonce
	for part in *.py */__init__.py; do \
	  ln -s "../../../$${part%/__init__.py}" "$(VENV)/docs/teachonce/$${part%/__init__.py}"; done
	$(BIN)/mkdocs build --strict

## lowest: the quick tests on Python 3.11 with the lowest versions that pyproject.toml allows, in $(VENV)-lowest
lowest: $(VENV)-lowest/.test
	$(VENV)-lowest/bin/pytest $(SIDE_BY_SIDE) -m "not slow" $(TEST_OPTIONS)

## bench: measure; see docs/performance.md
bench: $(VENV)/.test
	$(BIN)/python benchmarks/run.py $(BENCH_OPTIONS)

## equivalence: cached against teacher in the loop; see docs/equivalence.md. TABLE_OPTIONS="--cifar10 FOLDER" adds CIFAR-10
equivalence: $(VENV)/.test
	$(BIN)/python benchmarks/equivalence/run.py steps $(STEPS_OPTIONS)
	$(BIN)/python benchmarks/equivalence/run.py table --out equivalence-run $(TABLE_OPTIONS)

## faults: provoke every fault of docs/reliability.md and write what happened there; FAULT_OPTIONS="--only 'disk full' --seed 1"
faults: $(VENV)/.test
	$(BIN)/python tests/faults $(FAULT_OPTIONS)

## clean: remove everything that the targets above made
clean:
	rm -rf $(VENV) $(VENV)-lowest build dist site teachonce.egg-info demo-run equivalence-run .hypothesis .pytest_cache .mypy_cache .ruff_cache

# One stamp a set of extras. uv resolves torch and torchvision together: builds that do not match fail on import.
$(VENV)/.demo: EXTRAS := demo,tensorboard
$(VENV)/.test: EXTRAS := test
$(VENV)/.lint: EXTRAS := test,lint,docs
$(VENV)/.docs: EXTRAS := docs

$(VENV)/.demo $(VENV)/.test $(VENV)/.lint $(VENV)/.docs: pyproject.toml | $(UV)
	@echo "Installing teachonce[$(EXTRAS)] into $(VENV); the first time takes some minutes." >&2
	$(UV_INSTALL) -e '.[$(EXTRAS)]'
	@touch $@

# What pyproject.toml names comes in its lowest version, what these need in turn in the newest that fits. Made anew, since
# an environment that is there keeps what it has.
$(VENV)-lowest/.test: pyproject.toml | $(UV)
	@echo "Installing the lowest versions into $(VENV)-lowest; the first time takes some minutes." >&2
	$(UV) venv --quiet --clear --python 3.11 $(VENV)-lowest
	$(UV) pip install --quiet --python $(VENV)-lowest/bin/python --resolution lowest-direct -e '.[test]'
	@touch $@

$(UV):
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "teachonce needs Python 3.11 or newer, found %d.%d. Next: make PYTHON=python3.12 …" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

# Static tools do not follow the editable install's import hook; a link under the package's own name serves them.
$(VENV)/typing/teachonce: | $(UV)
	mkdir -p $(VENV)/typing
	ln -sfn ../.. $@
