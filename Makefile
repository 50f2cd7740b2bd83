# Everything a person needs: `make demo`, `make test`, `make docs`. The environment is made on first use, in .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
INSTALLED := $(VENV)/.installed

.PHONY: help demo test docs lint format clean

help:  ## show the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: $(INSTALLED)  ## train a small detector without, with random and with learned pasting; writes demo/report.html
	$(BIN)/python examples/demo/run.py --out demo
	@echo "open demo/report.html"

test: lint  ## style, types and all tests, in JOBS processes (default 2)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

docs: $(VENV)/.docs  ## build the documentation site into site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

lint: $(INSTALLED)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## reformat the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and what the commands made
	rm -rf $(VENV) demo build dist site

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools<81" wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

$(VENV)/.docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@
