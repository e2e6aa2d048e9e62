# Everything a person types: make demo, make test, make check. See CONTRIBUTING.md.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Stamps say what a virtual environment has, so that a second run installs nothing.
STAMPS := $(VENV)/.stamps
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.DEFAULT_GOAL := help
TIME   ?= 10m

.PHONY: help demo test slow fuzz check lint types format clean

help:
	@echo "make demo    compile a trained model, run it on real data, time it"
	@echo "make test    run the tests"
	@echo "make slow    run the tests that take minutes"
	@echo "make fuzz    compile random graphs and compare with a reference, for TIME=10m"
	@echo "make check   lint, format check, types"
	@echo "make format  apply the formatter and the lint fixes"
	@echo "make clean   remove the virtual environment and everything built"

demo: $(STAMPS)/demo
	$(BIN)/python examples/demo.py

test: $(STAMPS)/test
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_FLAGS)

slow: $(STAMPS)/test $(STAMPS)/bench $(STAMPS)/cross
	$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)

fuzz: $(STAMPS)/test
	$(BIN)/python -m benchmarks.fuzz --time $(TIME)

check: lint types

lint: $(STAMPS)/check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMPS)/check
	$(BIN)/mypy

format: $(STAMPS)/check
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "tilewright needs Python 3.10 or newer; try make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# The demo and the tests share an editable install; each extra is added to it when it is needed.
$(addprefix $(STAMPS)/,demo test bench cross check): $(STAMPS)/%: pyproject.toml $(STAMPS)/venv
	@echo "installing what 'make $*' needs into $(VENV) ..."
	$(PIP) --editable ".[$*]"
	@touch $@
