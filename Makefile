# Set-up and everyday commands. Everything is installed into .venv, once; a change of the sources builds it again.
#
#   make generate PROMPT="a red mushroom" [ARGS="--preset draft --seed 3"]
#   make test     the whole test suite, a file a process, two at a time
#   make check    lint and the quick tests, in under a minute
#   make lint     ruff, mypy, clang-format
#   make build    set-up and build alone
#   make clean    removes what was built and installed, not outputs/

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
SOURCES := setup.py CMakeLists.txt pyproject.toml constraints.txt ddpo3d_fast/__init__.py $(shell find csrc -type f)
CSRC := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

# What a bare machine lacks, as Debian calls it; empty if nothing. Ends in words: make puts a full stop behind it.
MISSING = $(shell \
  compiler=; \
  command -v "$${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null \
    || compiler=" g++"; \
  if ! command -v $(PYTHON) >/dev/null; then \
    echo "$(PYTHON) is missing: apt install python3 python3-venv python3-dev$$compiler (then make again)"; \
  elif ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then \
    echo "$(PYTHON) is older than 3.10: install a newer one and name it, as in make PYTHON=python3.12"; \
  else \
    packages=; \
    $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || packages="$$packages python3-venv"; \
    $(PYTHON) -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null \
      || packages="$$packages python3-dev"; \
    packages="$$packages$$compiler"; \
    if [ -n "$$packages" ]; then echo "system packages are missing: apt install$$packages (then make again)"; fi; \
  fi)

# Threads that spin while they wait slow a busy machine down tenfold.
export OMP_WAIT_POLICY ?= PASSIVE
export PROMPT

# Tests of a second or two each; those of the kernels but for their build.
QUICK := assets guidance kernels reference scene tables

.PHONY: generate prompt test check lint build clean

generate: prompt $(STAMP)
	@$(BIN)/ddpo3d-fast generate --prompt "$$PROMPT" $(ARGS)

prompt:
	$(if $(PROMPT),,$(error PROMPT is missing: make generate PROMPT="a red mushroom"))

test: $(STAMP)
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile $(ARGS)

check: lint
	@$(BIN)/python -m pytest -q $(addprefix tests/,$(QUICK)) --ignore tests/kernels/test_build.py $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(BIN)/clang-format --dry-run -Werror $(CSRC)

build: $(STAMP)

$(STAMP): $(SOURCES) | $(BIN)/python
	$(if $(MISSING),$(error $(MISSING)))
	@echo "installing into .venv (once; a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[generate,test]'
	@touch $@

$(BIN)/python:
	$(if $(MISSING),$(error $(MISSING)))
	@$(PYTHON) -m venv .venv

clean:
	rm -rf .venv build dist *.egg-info ddpo3d_fast/_C.*.so
	find . -name __pycache__ -prune -exec rm -rf {} +
