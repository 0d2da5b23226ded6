# `make demo` and `make test` need only Python 3.11 or newer, pip and make.

# The Python of a new $(VENV): 3.12, from PATH or pyenv, if it runs and has pip; else python3. An existing $(VENV)
# keeps its own. `make PYTHON=python3.11` chooses another.
PYENV_ROOT ?= $(HOME)/.pyenv
PYTHON ?= $(shell for python in python3.12 $(PYENV_ROOT)/versions/3.12*/bin/python3.12; do \
    $$python -m pip --version >/dev/null 2>&1 && echo $$python && exit; done; echo python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test slow lint check notebooks constraints clean

demo: $(INSTALLED)  ## train a small Xception on real handwritten digits, in minutes
	$(BIN)/python train.py --config configs/digits.py --workdir runs/digits

test: $(INSTALLED)  ## the whole suite
	$(BIN)/python -m pytest -n 2 --dist loadgroup

slow: $(INSTALLED)  ## what takes minutes a test
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check: lint test

notebooks: $(INSTALLED)  ## writes the .ipynb of each notebook from its text form
	$(BIN)/jupytext --to ipynb notebooks/*.md

constraints:  ## pins all dependencies anew, for every supported Python; needs uv
	uv pip compile pyproject.toml --extra dev --universal --upgrade --no-header --no-annotate -o constraints.txt

# Debian's python3 may come without ensurepip: then its own pip installs into the environment.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit("Python is %d.%d: 3.11 or newer is needed; name it with PYTHON=..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || $(PYTHON) -m venv --without-pip $(VENV)
	if $(BIN)/python -m pip --version >/dev/null 2>&1; \
	then $(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'; \
	else $(PYTHON) -m pip --python $(BIN)/python install -q -c constraints.txt -e '.[dev]'; fi
	touch $@

clean:
	rm -rf $(VENV) .hypothesis .pytest_cache .ruff_cache *.egg-info
