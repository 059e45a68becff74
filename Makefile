PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Some machines ask Python to keep no bytecode: every process of the tests would compile all anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test azurite soak lint docs clean

help:  ## list what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 8

# The stamp is younger than setup.cfg when everything setup.cfg asks for is installed. uv takes a
# quarter of pip's time. It reads none of pip's settings, so it is told where packages come from and
# which may be taken; where it cannot install, pip does.
pip_setting = $$($(BIN)/python -m pip config list \
  | sed -nE "s/^(:env:|global|install)\.$(1)='(.*)'$$/\2/p" | head -1)
$(VENV)/installed: export UV_INDEX_STRATEGY := unsafe-best-match
$(VENV)/installed: setup.cfg
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	-$(BIN)/python -m pip install --quiet uv
	UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$(call pip_setting,index-url)}" \
	UV_INDEX="$${UV_INDEX:-$(call pip_setting,extra-index-url)}" \
	UV_FIND_LINKS="$${UV_FIND_LINKS:-$(call pip_setting,find-links)}" \
	UV_CONSTRAINT="$${UV_CONSTRAINT:-$(call pip_setting,constraint)}" \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[test,lint,docs]' \
	  || $(BIN)/python -m pip install --quiet --editable '.[test,lint,docs]'
	touch $@

# Collected once by one process, most of what tests import is compiled, which else each of several
# would do.
$(VENV)/compiled: $(VENV)/installed
	$(BIN)/python -m pytest --collect-only -qq -m "not soak" >/dev/null 2>&1 || true
	touch $@

demo: $(VENV)/installed  ## label examples/photos with the embedded model and show the table
	mkdir -p demo
	$(BIN)/label-images examples/photos --out demo/labels.parquet --model embedded
	$(BIN)/python examples/show.py demo/labels.parquet

# Pillow's own test images, odd, broken and malicious, from its source package: not ours to ship.
$(VENV)/pillow-images: $(VENV)/installed
	rm -rf $@ $@.tmp
	$(BIN)/python -m pip download --quiet --no-deps --no-binary pillow --dest $@.tmp \
	  pillow==$$($(BIN)/python -c 'import PIL; print(PIL.__version__)')
	tar -xzf $@.tmp/pillow-*.tar.gz -C $@.tmp
	mv $@.tmp/pillow-*/Tests/images $@
	rm -rf $@.tmp
	touch $@

# Of the versions in its lock file, whose scripts are not run.
$(VENV)/azurite/installed: tests/azurite/package-lock.json
	rm -rf $(@D)
	mkdir -p $(@D)
	cp tests/azurite/package.json tests/azurite/package-lock.json $(@D)
	npm ci --prefix $(@D) --ignore-scripts --no-audit --no-fund --loglevel=error
	touch $@

azurite: $(VENV)/azurite/installed  ## install Azure's emulator with npm, for the tests of stores

# Four on two cores: many tests wait, for a lease to run out or a cluster to start.
test: $(VENV)/pillow-images $(VENV)/compiled  ## run every test but the soak
	$(BIN)/python -m pytest -m "not soak" --numprocesses 4 --dist loadfile --no-loadscope-reorder

soak: $(VENV)/installed  ## a hundred real kills, ten thousand damaged files, the largest networks; half an hour
	$(BIN)/python -m pytest -m soak -s

lint: export MYPY_NUM_WORKERS := 2
lint: $(VENV)/installed  ## check style, types and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# All pages anew (-E): a warning about a page that did not change would else be heard once only.
docs: $(VENV)/installed  ## make the pages in docs/_build/html, and bring their generated parts up to date
	$(BIN)/python -m docs.generate
	$(BIN)/python -m sphinx -b html -E -W --keep-going -q docs docs/_build/html

clean:  ## remove what make made
	rm -rf $(VENV) demo docs/_build build dist *.egg-info
