# Each target sets up what it needs: a virtual environment in .venv, remade when pyproject.toml changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
READY := $(VENV)/.ready
COMPILER := formats/node_modules/.package-lock.json

# pip says nothing but errors: no notices about its cache, its version or the user.
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

.PHONY: demo test test-deep lint types bench derived derived-check ksy ksy-check clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	@$(BIN)/qcow2c dump examples/demo.qcow2

# One worker a processor.
test: $(READY)
	@$(BIN)/python -m pytest -q -n auto --dist worksteal --cov --cov-report=term

# Searches at random and for long, and lets qemu-img judge every state that a crash may leave: hours.
test-deep: $(READY)
	@HYPOTHESIS_PROFILE=deep $(BIN)/python -m pytest -q -n auto --dist worksteal

lint: $(READY)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .

types: $(READY)
	@$(BIN)/mypy --no-error-summary

# The inputs are kept in build/bench: 21 GiB, and 7 more while it runs. BENCH holds more options, as BENCH="--size 256M 'to-raw-*'".
bench: $(READY)
	@$(BIN)/python -m bench --directory build/bench $(BENCH)

# Write what follows from structs.py to qcow2c/format/derived.py; derived-check: that doing so changes nothing.
derived: $(INSTALLED)
	@$(BIN)/python formats/derive.py

derived-check: $(INSTALLED)
	@$(BIN)/python formats/derive.py --check

# Compile formats/qcow2.ksy to the parser that is checked in; ksy-check: that doing so changes nothing.
ksy: $(COMPILER)
	@node formats/compile.mjs

ksy-check: $(COMPILER)
	@node formats/compile.mjs --check

clean:
	@rm -rf $(VENV) formats/node_modules .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The program alone, and what the tests and checks need beside it.
$(INSTALLED): pyproject.toml | $(BIN)/pip
	@$(PIP) install -e .
	@touch $@

$(READY): $(INSTALLED)
	@$(PIP) install -e '.[dev]'
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit("qcow2c: Python 3.11 or newer is needed, and this is %d.%d: make PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@echo 'qcow2c: setting up $(VENV) (once)' >&2
	@$(PYTHON) -m venv --clear $(VENV)

$(COMPILER): formats/package.json formats/package-lock.json
	@cd formats && npm ci --loglevel=error --no-audit --no-fund --no-update-notifier >/dev/null
	@touch $@
