# Two commands do all the set-up on a machine that has Python 3.11+, pip, make and git:
#   make demo   runs the main job into runs/demo
#   make test   runs the test suite
# Further ones: test-slow (what make test leaves out), lint, docs (pages in build/site),
# wheel (builds it, installs it into an empty environment, and runs it), clean.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PYTEST_ARGS ?= -n auto --dist worksteal
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow lint docs wheel clean

$(BIN)/vfejax: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(BIN)/pytest: $(BIN)/vfejax pyproject.toml
	$(PIP) -e '.[test]'
	@touch $@

$(BIN)/mkdocs: $(BIN)/vfejax pyproject.toml
	$(PIP) -e '.[docs]'
	@touch $@

demo: $(BIN)/vfejax
	$(BIN)/vfejax simulate --out runs/demo --overwrite
	@echo "open runs/demo/report.html"

test: $(BIN)/pytest
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-slow: $(BIN)/pytest
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: $(BIN)/pytest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(BIN)/mkdocs
	$(BIN)/mkdocs build
	@echo "open build/site/index.html"

wheel:
	PYTHON=$(PYTHON) .ci/wheel

clean:
	rm -rf $(VENV) build runs
