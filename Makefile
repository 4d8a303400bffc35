# `make demo` and `make test` set everything up on a fresh machine; a second run only does what changed.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench clean

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := CMakeLists.txt setup.py pyproject.toml VERSION $(shell find csrc tests/cpp -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

help:
	@echo 'make demo   set up, train plain and accelerated on handwritten digits, compare, write runs/demo/demo.png'
	@echo 'make test   set up, run the C++ and Python tests'
	@echo 'make lint   ruff, mypy --strict, clang-format'
	@echo 'make bench  all benchmarks, quick, on this CPU'
	@echo 'make clean  remove the build and the environment'

$(VENV)/installed: pyproject.toml tools/setup.sh
	@PYTHON='$(PYTHON)' tools/setup.sh '$(VENV)'
	@touch $@

$(VENV)/built: $(VENV)/installed $(SOURCES)
	@echo '== building the native part'
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip install -q --no-build-isolation --no-deps -e .
	@$(BIN)/python tools/built.py
	@touch $@

setup: $(VENV)/built

demo: setup
	$(BIN)/python -m pydiffaccel.demo

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'tests/cpp/*.h' 'tests/cpp/*.cpp')

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'tests/cpp/*.h' 'tests/cpp/*.cpp')

bench: setup
	for bench in benchmarks/bench_*.py; do $(BIN)/python "$$bench" --quick; done

clean:
	rm -rf build $(VENV) pydiffaccel/*.so *.egg-info
