# A target does the set-up it needs, into .venv; where nothing has changed, that takes no time.
# gpu-check, and bench without .venv, take the Python that is there.

define HELP
  make demo    distillation on real data, then the fused loss against the eager one
  make test    the tests, in minutes: every operator, both memories, the GPU kernels' logic
  make bench   time and memory against the published eager code, torch.compile and SDPA: a record,
               tables and pictures under benchmarks/results/
  make help    this list

For those who change it:
  make setup        the environment and the extension only
  make test-fast    the core on the CPU, half a minute: about 2000 tests of losses, memories, errors
  make test-all     test, test-long, and with the oldest versions what depends on them
  make test-long    what is marked long: other cards, widths, instruction sets, moments of a cut-off
  make test-oldest  make test with the oldest PyTorch and Triton that are supported
  make docs         the documentation site, into build/docs; make links also checks external links,
                    which needs a network
  make lint         ruff, mypy, clang-format; make format mends what can be mended
  make sanitize     the tests that reach C++, under AddressSanitizer and UBSan
  make test-integrations  other packages: Lightning, timm and others, in an environment of theirs
  make dist         sdist and wheel, installed and tried in an empty environment
  make wheel        one wheel for all supported versions of PyTorch, into dist/
  make try-wheel    tries it in fresh environments without a compiler: oldest, middle, newest PyTorch
  make kernels      compiles every GPU kernel and prints registers and shared memory
  make pack         compiles GPU kernels ahead, without a GPU, into a folder that RRD_KERNELS
                    names: make pack ARGS="--arch sm_90 --output build/kernels"
  make gpu-pack     the same for gpu-check, into build/kernels
  make gpu-check    builds, tests, measures and sanitizes on a GPU, into one JSON file:
                    make gpu-check PYTHON=python3 PART=first (or rest), PACK=build/kernels;
                    STAND_IN=1 runs it without a GPU
  make clean        removes the environments and all that was built

ARGS="..." goes to demo, bench, the tests, kernels, pack, gpu-pack and gpu-check: make demo ARGS=--quick
endef
export HELP

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
INTEGRATIONS := .venv-integrations
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

INSTALLED := $(VENV)/.installed
EDITABLE := $(VENV)/.editable
BUILT := $(VENV)/.built
CPP := $(shell find csrc -name "*.cpp" -o -name "*.h" -o -name "*.inl")
SOURCES := setup.py $(CPP)

.PHONY: help setup demo test test-fast test-all test-long test-oldest test-integrations oldest kernels pack lint format \
  bench docs links gpu-check gpu-pack sanitize dist wheel try-wheel clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

setup: $(BUILT)
oldest: $(OLDEST)/.installed

help:
	@echo "$$HELP"

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
	@echo "Compiling the extension (one to three minutes) ..."
	@{ if [ $(EDITABLE) -nt $(INSTALLED) ]; then \
	    PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python setup.py build_ext --inplace; \
	  else \
	    PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation \
	      --config-settings editable_mode=compat --editable '.[dev]' && touch $(EDITABLE); \
	  fi; } >$(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }
	@touch $@

demo: $(BUILT)
	@$(BIN)/python examples/quickstart.py $(ARGS)

# A process for each core, which takes the next tests when it has none.
PYTEST := -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal

test: $(BUILT)
	@$(BIN)/python $(PYTEST) $(ARGS)

# One process, as each that xdist starts imports PyTorch. No compilations, processes, large sizes, or GPU.
FAST := bad_input contrastive_loss crd determinism enqueue family golden gradients loss momentum momentum_bad_input \
  momentum_indices momentum_loss momentum_negatives momentum_update options partials properties step
test-fast: $(BUILT)
	@CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -q -k "not (compile or ranks or 16384 or offsets or many_rows)" \
	  $(FAST:%=tests/test_%.py) $(ARGS)

test-long: $(BUILT)
	@$(BIN)/python $(PYTEST) -m long $(ARGS)

kernels: $(BUILT)
	@$(BIN)/python $(PYTEST) -q -m "" tests/test_triton_compile.py tests/test_triton_momentum_compile.py $(ARGS)

pack: $(BUILT)
	@$(BIN)/python -m rrd_kernels.pack $(ARGS)

# In a copy, since the extension that is built in place here belongs to the newer PyTorch. Nothing is
# installed from it: the path is for the processes that tests start.
$(OLDEST)/.installed: constraints-oldest.txt
	@echo "Installing the oldest versions into $(OLDEST) (several GB, a few minutes) ..."
	@$(PYTHON) -m venv --clear $(OLDEST)
	@$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet \
	  --requirement constraints-oldest.txt
	@touch $@

.PHONY: oldest-tree
oldest-tree: $(OLDEST)/.installed
	@rm -rf build/oldest && mkdir -p build/oldest
	@git ls-files -coz --exclude-standard | tar --null --files-from - --create --file - | \
	  tar --extract --file - --directory build/oldest
	@echo "Compiling the extension (one to three minutes) ..."
	@cd build/oldest && export PATH="$(CURDIR)/$(OLDEST)/bin:$$PATH" && \
	  { python setup.py build_ext --inplace >build.log 2>&1 || { cat build.log; exit 1; }; }

WITH_OLDEST := cd build/oldest && PATH="$(CURDIR)/$(OLDEST)/bin:$$PATH" PYTHONPATH="$(CURDIR)/build/oldest" \
  python $(PYTEST)

test-oldest: oldest-tree
	@$(WITH_OLDEST) $(ARGS)

# With the oldest versions: what depends on them, and all that their Triton makes of an H200's kernels.
test-all: test test-long oldest-tree
	@$(WITH_OLDEST) -k "not (benchmark or scaling or gpu_ or capability or memory_use or traffic)"
	@$(WITH_OLDEST) -m long -k "compile and H200 or (ptx_fifo or ptx_momentum) and not (1000 or sm_80)" tests/test_triton_compile.py \
	  tests/test_triton_momentum_compile.py tests/test_ptx_fifo.py tests/test_ptx_momentum.py

# What is in .venv is lent, PyTorch for one; pip installs beside it only what is missing there.
$(INTEGRATIONS)/.installed: constraints-integrations.txt constraints.txt | $(BUILT)
	@echo "Installing other packages into $(INTEGRATIONS) ..."
	@$(BIN)/python -m venv --clear $(INTEGRATIONS)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  >"$$($(INTEGRATIONS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/lent.pth"
	@$(INTEGRATIONS)/bin/python -m pip --disable-pip-version-check install --quiet \
	  --constraint constraints.txt --requirement constraints-integrations.txt
	@touch $@

test-integrations: $(INTEGRATIONS)/.installed
	@$(INTEGRATIONS)/bin/python $(PYTEST) -m "" tests/test_integrations_*.py tests/test_docs.py -k "integrations or packages" \
	  $(ARGS)

lint: $(BUILT)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(BUILT)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CPP)

# Where nothing has been installed here and the Python that is there has PyTorch, that one: a machine
# with a GPU may have no network.
ifeq ($(MAKECMDGOALS)$(wildcard $(INSTALLED)),bench)
HAS_TORCH := $(shell $(PYTHON) -c 'import torch, triton; print(True)' 2>/dev/null)
endif
ifeq ($(HAS_TORCH),True)
bench:
	@$(PYTHON) setup.py build_ext --inplace >/dev/null
	@$(PYTHON) -m benchmarks.report $(ARGS)
else
bench: $(BUILT)
	@$(BIN)/python -m benchmarks.report $(ARGS)
endif

GPU_CHECK := tests/gpu_check.py $(if $(PART),--part $(PART)) $(if $(PACK),--pack $(PACK))
ifdef STAND_IN
gpu-check: $(BUILT)
	@$(BIN)/python $(GPU_CHECK) --stand-in $(ARGS)
else
gpu-check:
	@$(PYTHON) $(GPU_CHECK) $(ARGS)
endif

gpu-pack: $(BUILT)
	@$(BIN)/python tests/gpu_pack.py --output $(or $(PACK),build/kernels) $(ARGS)

# Sphinx checks what Markdown links to, places within a page too; LinkChecker what HTML does.
SPHINX := $(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs

docs: $(BUILT)
	@$(SPHINX) build/docs
	@$(BIN)/linkchecker --no-status build/docs/index.html >build/links.txt 2>&1 || { cat build/links.txt; exit 1; }
	@echo "Open build/docs/index.html"

links: $(BUILT)
	@$(SPHINX) -b linkcheck build/links

sanitize: $(BUILT)
	@$(BIN)/python tests/sanitize.py

dist: $(BUILT)
	@$(BIN)/python tests/check_dist.py

wheel: $(BUILT)
	@$(BIN)/python release/make_wheel.py

try-wheel: $(BUILT)
	@$(BIN)/python release/try_wheel.py

clean:
	rm -rf $(VENV) $(OLDEST) $(INTEGRATIONS) build dist *.egg-info rrd_kernels/_C*.so rrd_kernels/_C*.pyd rrd_kernels/_C*.dylib
