# `make demo` and `make test` need only python3 (3.11 or newer), pip and make.

PYTHON ?= python3
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
	$(PYTHON) -c 'import sys; sys.exit("python3 is %d.%d: 3.11 or newer is needed" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || $(PYTHON) -m venv --without-pip $(VENV)
	if $(BIN)/python -m pip --version >/dev/null 2>&1; \
	then $(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'; \
	else $(PYTHON) -m pip --python $(BIN)/python install -q -c constraints.txt -e '.[dev]'; fi
	touch $@

clean:
	rm -rf $(VENV) .hypothesis .pytest_cache .ruff_cache *.egg-info
