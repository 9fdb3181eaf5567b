# Two commands do everything: make book, make test. The rest is for those who work here.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable
STUDY ?= quick

# pip would compile every file of every package; what is imported is compiled then, and kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: book zip test test-all check links install study bench lab clean

book: install
	$(BIN)/transfusion run cells --collected
	$(BIN)/transfusion run chest --collected
	$(BIN)/transfusion run quick
	$(BIN)/transfusion book

zip: book
	$(BIN)/transfusion book --zip

# A file's tests share what they make, so a file stays with one process.
test: install check
	$(BIN)/pytest --numprocesses auto --dist loadfile

# The book's tests look at it in a Chromium, which is not installed here.
test-all: install
	$(PIP) '.[browser]'
	$(BIN)/pytest --numprocesses auto --dist loadfile -m "not gpu"

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/typos
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/pytest --noconftest tests/test_links.py

# Links that lead elsewhere; `check` follows those within.
links: install
	$(PIP) '.[links]'
	$(BIN)/lychee --no-progress *.md params/*.md book/*.md book/guide/*.md book/*.ipynb

study: install
	$(BIN)/transfusion run $(STUDY)

# Some environments hold numpy's library to an old processor, at half the speed.
bench: install
	env -u OPENBLAS_CORETYPE $(BIN)/transfusion bench

# What running a notebook leaves is not saved, so that git sees edits alone.
lab: install
	$(PIP) '.[lab]'
	$(BIN)/transfusion run quick
	$(BIN)/jupyter lab book --FileContentsManager.pre_save_hook=transfusion.render.before_saving

install: .venv/installed

# Written last, so an interrupted installation is begun again.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11 to 3.13 is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(PIP) '.[dev]' --no-compile
	touch $@

clean:
	rm -rf book/_build
