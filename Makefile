# Percepta on a fresh machine: CPython 3.11 to 3.13, gcc and make are enough; every target makes .venv by itself.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
READY   = $(VENV)/.ready

.PHONY: help demo test parity test-all lint types docs check clean

help:
	@echo "make demo      train a small model on built-in images, finetune it to 5 steps, judge both, write a report (under 8 minutes on 2 cores, after installation)"
	@echo "make test      the default tests (under 10 minutes on 2 cores)"
	@echo "make parity    the metrics on 2,000 real images a side against torch-fidelity and pytorch-fid (10 minutes; wants weights and data)"
	@echo "make test-all  the slow tests too"
	@echo "make lint      ruff; make types  pyright; make docs  the site in site/; make check  all that CI runs"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f'Percepta needs Python 3.11 to 3.13, this is {v[0]}.{v[1]}: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

demo: $(READY)
	@$(BIN)/python -m percepta.demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

parity: $(READY)
	$(BIN)/python -m pytest tests/evaluation/test_parity.py -rs

test-all: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/pyright

docs: $(READY)
	$(BIN)/mkdocs build --strict

check: lint types docs test

clean:
	rm -rf $(VENV) build dist site *.egg-info
