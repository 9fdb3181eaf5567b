# Two commands do everything: make book, make test. The rest is for those who work here.
PYTHON ?= python3
BIN := .venv/bin
STUDY ?= quick

# pip would compile every file of every package; what is imported is compiled then, and kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: book test test-all check install study bench lab clean

book: install
	$(BIN)/transfusion run retina --collected
	$(BIN)/transfusion run cxr --collected
	$(BIN)/transfusion run quick
	$(BIN)/transfusion book

# A file's tests share what they make, so a file stays with one process.
test: install check
	$(BIN)/pytest --numprocesses auto --dist loadfile

test-all: install
	$(BIN)/pytest --numprocesses auto --dist loadfile -m "not gpu"

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

study: install
	$(BIN)/transfusion run $(STUDY)

# Some environments hold numpy's library to an old processor, at half the speed.
bench: install
	env -u OPENBLAS_CORETYPE $(BIN)/transfusion bench

lab: install
	$(BIN)/pip install --quiet --constraint constraints.txt jupyterlab
	$(BIN)/jupyter lab book

install: .venv/installed

# Written last, so an interrupted installation is begun again.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11 to 3.13 is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf book/_build
