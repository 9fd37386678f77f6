# Two commands: `make demo` trains the default network, `make test` checks everything. Both make .venv first.

PYTHON ?= python3
BIN := .venv/bin
# torch first and by itself: a range that another package names would otherwise pull the CUDA build.
TORCH := torch==2.13.0

.PHONY: setup demo test test-all lint clean

setup: .venv/.done

.venv/.done: requirements-cpu.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-cpu.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: setup
	$(BIN)/distblock train

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Two files of tests at once, since tests of runs wait for processes to start for most of their time.
AT_ONCE := -n 2 --dist loadfile

test: lint
	$(BIN)/pytest $(AT_ONCE)

# What takes minutes and differs from a quick case in regime or size alone, too.
test-all: lint
	$(BIN)/pytest $(AT_ONCE) -m ""

clean:
	rm -rf .venv
