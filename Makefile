# Two commands do all the set-up on a machine that has Python 3.11+, pip, make and git:
#   make demo   runs the main job into runs/demo
#   make test   runs the test suite
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PYTEST_ARGS ?= -n auto

.PHONY: demo test lint clean

$(BIN)/vfejax: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(BIN)/pytest: $(BIN)/vfejax pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

demo: $(BIN)/vfejax
	$(BIN)/vfejax simulate --out runs/demo --overwrite
	@echo "open runs/demo/report.html"

test: $(BIN)/pytest
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(BIN)/pytest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs
