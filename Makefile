# Two commands do everything: make book, make test. The rest is for those who work here.
PYTHON ?= python3
BIN := .venv/bin
UV := $(shell command -v uv)
# No pre-compiling of every file of every package: what is imported is compiled then, and kept.
INSTALLER := $(if $(UV),uv pip install --python $(BIN)/python,$(BIN)/pip install --no-compile --disable-pip-version-check)
INSTALL := $(INSTALLER) --quiet --constraint constraints.txt --editable
STUDY ?= quick

unexport PYTHONDONTWRITEBYTECODE

.PHONY: book read zip test test-all check links audit install study bench lab clean

# First what is in git, which needs no torch, then the quick study and the book with it.
book: read
	$(MAKE) install
	$(BIN)/transfusion run quick
	$(BIN)/transfusion book

read: .venv/reads
	$(BIN)/transfusion book

zip: book
	$(BIN)/transfusion book --zip

# A file's tests share what they make, so a file stays with one process.
test: install check
	$(BIN)/pytest --numprocesses auto --dist loadfile

# The book's tests look at it in a Chromium, which is not installed here.
test-all: install
	$(INSTALL) '.[browser]'
	$(BIN)/pytest --numprocesses auto --dist loadfile -m "not gpu"

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/typos
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/pytest --noconftest tests/test_links.py

# Links that lead elsewhere; `check` follows those within.
links: install
	$(INSTALL) '.[links]'
	$(BIN)/lychee --no-progress *.md params/*.md book/*.md book/guide/*.md book/*.ipynb

# Advisories on the versions in constraints.txt, as the package index has them today: an advisory of
# tomorrow should break no test. Whatever the index does not tell of fails, too.
audit: install
	$(INSTALLER) '.[audit]'
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

study: install
	$(BIN)/transfusion run $(STUDY)

# Some environments hold numpy's library to an old processor, at half the speed.
bench: install
	$(INSTALL) '.[bench]'
	env -u OPENBLAS_CORETYPE $(BIN)/python -m bench --quick

# What running a notebook leaves is not saved, so that git sees edits alone.
lab: install
	$(INSTALL) '.[lab]'
	$(BIN)/transfusion run quick
	$(BIN)/jupyter lab book --FileContentsManager.pre_save_hook=transfusion.studies.render.before_saving

install: .venv/installed

# Written last, so an interrupted installation is begun again.
.venv/installed: .venv/reads
	$(INSTALL) '.[dev]'
	touch $@

.venv/reads: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11 to 3.13 is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(INSTALL) '.[read]'
	touch $@

clean:
	rm -rf book/_build
