# Each target does the set-up it needs, into .venv; where nothing has changed, that takes no time.
#
#   make demo      distillation on real data, then the fused loss against the eager one
#   make test      all tests
#   make lint      ruff, mypy, clang-format
#   make bench     time and memory against the published eager code and SDPA
#   make sanitize  the tests that reach C++, under AddressSanitizer and UBSan
#   make dist      sdist and wheel, installed and tried in an empty environment
#   make setup     the environment and the extension only
#
# ARGS="..." goes to demo, test and bench: make demo ARGS=--quick

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

INSTALLED := $(VENV)/.installed
EDITABLE := $(VENV)/.editable
BUILT := $(VENV)/.built
CPP := $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.inl)
SOURCES := setup.py $(CPP)

.PHONY: setup demo test lint format bench sanitize dist clean
.DELETE_ON_ERROR:

setup: $(BUILT)

$(INSTALLED): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with make PYTHON=..."; exit 1; }
	@command -v $${CXX:-g++} >/dev/null || { echo "A C++ compiler (g++) is needed."; exit 1; }
	@echo "Installing PyTorch and the rest into $(VENV) (several GB, a few minutes) ..."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
	  { echo "Python's venv module is needed (Debian, Ubuntu: apt install python3-venv)."; exit 1; }
	@$(PIP) setuptools ninja torch torchvision
	@touch $@

# The first build is pip's, which also installs what pyproject.toml asks for; later ones compile
# only what has changed.
$(BUILT): $(INSTALLED) $(SOURCES)
	@echo "Compiling the extension (about a minute) ..."
	@{ if [ $(EDITABLE) -nt $(INSTALLED) ]; then \
	    PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python setup.py build_ext --inplace; \
	  else \
	    PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation \
	      --config-settings editable_mode=compat --editable '.[dev]' && touch $(EDITABLE); \
	  fi; } >$(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }
	@touch $@

demo: $(BUILT)
	@$(BIN)/python examples/quickstart.py $(ARGS)

test: $(BUILT)
	@$(BIN)/python -m pytest $(ARGS)

lint: $(BUILT)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(BUILT)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CPP)

bench: $(BUILT)
	@$(BIN)/python -m benchmarks $(ARGS)

sanitize: $(BUILT)
	@$(BIN)/python tests/sanitize.py

dist: $(BUILT)
	@$(BIN)/python tests/check_dist.py

clean:
	rm -rf $(VENV) build dist *.egg-info rrd_kernels/_C*.so
