PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint clean

help:  ## list what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 8

# The stamp is younger than setup.cfg when everything setup.cfg asks for is installed.
$(VENV)/installed: setup.cfg
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test,lint]'
	touch $@

demo: $(VENV)/installed  ## label examples/photos with the embedded model and show the table
	mkdir -p demo
	$(BIN)/label-images examples/photos --out demo/labels.parquet
	$(BIN)/python examples/show.py demo/labels.parquet

test: $(VENV)/installed  ## run every test, the slow ones too
	$(BIN)/python -m pytest -m "slow or not slow"

lint: $(VENV)/installed  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:  ## remove what make made
	rm -rf $(VENV) demo build dist *.egg-info
