# make demo   the main job on real data, in its own environment
# make test   the tests        make lint   ruff and mypy        make bench   the benchmarks
# make docs   the pages of the codes                            make pictures   the README's screenshots (Chromium)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-fast lint bench docs pictures notebooks clean

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable '.[dev]'
	touch $@

demo: $(VENV)/.demo
	$(BIN)/lightning-stall demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not alone" -n 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest -m alone

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow and not alone" -n 2 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.gradients
	$(BIN)/python -m benchmarks.zoo

docs: $(VENV)/.dev
	$(BIN)/python -m lightning_stall.catalogue.reference docs/codes

notebooks: $(VENV)/.dev
	$(BIN)/python notebooks/execute.py

pictures: $(VENV)/.dev
	$(INSTALL) --editable '.[browser]'
	LIGHTNING_STALL_PICTURES=$(CURDIR)/docs $(BIN)/python -m pytest tests/test_browser.py

clean:
	rm -rf $(VENV) .demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis lightning_logs
