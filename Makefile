# `make study` and `make test` need python3 (3.11 or newer) and make; the rest is installed into .venv.
PYTHON ?= python3
STAMP := .venv/.installed
# The packages as they are imported, for mypy, which knows no mapping of folders: links, outside of version control.
TYPED := .venv/mypy/takd
PRESET ?= mnist-gap
INSTALLED := tests/test_wheel.py

# What the tests and the study print should not depend on the machine's mood.
export RAY_DEDUP_LOGS := 0
export PYTHONHASHSEED := 0
# Some machines ask for it; every process that a study or a test starts would then compile takd anew, half a second each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: study test wheel check docs clean help

help:  ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

study: $(STAMP)  ## the study of the README: run, resume or find it done (PRESET=mnist-gap)
	.venv/bin/takd run $(PRESET)

test: $(STAMP)  ## all tests but that of what is installed
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore=$(INSTALLED)

wheel: $(STAMP)  ## a wheel, installed into an empty environment, runs the README's commands; a minute and a half of CPU
	.venv/bin/python -m pytest $(INSTALLED)

check: $(STAMP)  ## formatting, lint and types
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	@mkdir -p $(TYPED)
	@ln -sfn $(addprefix $(CURDIR)/,$(wildcard takd/*.py) search_spaces trainables study analysis) $(TYPED)
	.venv/bin/mypy -p takd
	.venv/bin/mypy

docs: $(STAMP)  ## the documentation as a site that works without a network, in .venv/site
	.venv/bin/mkdocs build

# Installed anew when what is to be installed changed.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "takd needs Python 3.11 or newer; name one with make PYTHON=..." >&2; exit 2; }
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

clean:  ## takes away .venv and what tools left, but no study
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache takd.egg-info
