# Every target works on a fresh machine with Python >= 3.10 (and its headers), make and a C++ compiler:
# it makes .venv and installs what is missing, once. An active virtual environment plays no part.

# The torch to build and test with, installed before anything else. Another one: make test TORCH=torch==2.10.0
TORCH ?= torch==2.13.0
# Those that test-wheel tries the wheel with, one by one: TORCHES="torch==2.10.0 torch==2.14.1"
TORCHES ?= $(TORCH)
# The Python that .venv is made from; one of another version makes it anew.
PYTHON ?= python3
# The compilers of test-compilers, the lowest releases of each kind among them, and the Pythons of test-pythons.
COMPILERS ?= g++-11 clang++-14 clang++-19
PYTHONS ?= 3.10 3.12 3.13
# Passed on by test, bench and the demos: make test ARGS="-k lstm -x"
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH
# Whoever works on the project sees every warning.
export VARLEN_RNN_WERROR = 1

# Stamps, each depending on the one before: torch, what builds, what examples import, all other tools.
PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
TORCH_STAMP := $(VENV)/.stamp-$(PYTHON_VERSION)-$(shell printf '%s' '$(TORCH)' | tr -c 'A-Za-z0-9.\n' -)
BUILD_TOOLS := $(VENV)/.tools-build
EXAMPLE_TOOLS := $(VENV)/.tools-examples
TOOLS := $(VENV)/.tools
# The package, installed in place. Of setup.py's switches: another value builds anew.
SWITCHES := $(VARLEN_RNN_EXTENSION)-$(VARLEN_RNN_CUDA)-$(VARLEN_RNN_CUDA_ARCHS)
INSTALLED := $(VENV)/.installed$(shell printf '%s' '$(SWITCHES)' | tr -c '0-9\n' -)
# What need not hold CUDA kernels for every GPU runs on the build above if it is there or asked for by a switch,
# else on one for this machine: its GPUs' architectures, or no CUDA part, and a new compiler's warning stops nobody.
NATIVE := $(VENV)/.installed-native
RUNNABLE := $(if $(subst -,,$(SWITCHES)),$(INSTALLED),$(or $(wildcard $(INSTALLED)),$(NATIVE)))
EMULATOR := build/emulator
# The kernels' C++ tests: compiled as users' kernels are (test-math), for Arm, and with sanitizers.
CPP_TESTS := build/cpp-tests
ARM := build/arm
SANITIZER := build/sanitizer
CONFIGURE_CPP_TESTS = $(BIN)/cmake -S csrc -G Ninja -DVARLEN_RNN_CPP_TESTS=ON -DVARLEN_RNN_WERROR=ON \
  -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja)
CONFIGURE_SANITIZER = $(CONFIGURE_CPP_TESTS) -B $(SANITIZER) -DVARLEN_RNN_SANITIZE=address,undefined
# A process for each core, with one thread that sleeps while it waits: tests of threads start their own.
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest --numprocesses auto --dist loadfile
# Without tests of programs, builds and other processes, which take long and have the same code on the fallback.
WITHOUT_PROGRAMS := $(addprefix --ignore=tests/,project data torch_tools/test_distributed.py masking/test_tracing.py)
# What runs the same code with the extension and without, beside programs: masking, transforms, ONNX exports.
ON_FALLBACK := $(WITHOUT_PROGRAMS) $(addprefix --ignore=tests/,masking $(addprefix torch_tools/test_,transforms.py vmap.py onnx.py))
# An environment of its own for test-packages, with the same torch, and the package as it is in place.
PACKAGES := build/packages
PACKAGES_PIP := $(PACKAGES)/bin/python -m pip --disable-pip-version-check
PACKAGES_TORCH := $(PACKAGES)/$(notdir $(TORCH_STAMP))
PACKAGES_INSTALLED := $(PACKAGES)/.installed

# Brings a stamp about in one line; what pages there are go to a log, whose end shows what failed.
LOG := build/install.log
SUBMAKE := $(MAKE) --no-print-directory
define step
@$(SUBMAKE) --question $(1) || { printf '%-50s' '$(2)'; start=$$(date +%s); \
  if $(SUBMAKE) $(1) >>$(LOG) 2>&1; then echo "$$(($$(date +%s) - start)) s"; \
  else status=$$?; echo failed; tail -n 40 $(LOG); echo 'All of it: $(LOG)'; exit $$status; fi; }
endef

# Of the comments, ### is for users and ## for developers.
help:  ### show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { list[/###/] = list[/###/] sprintf("  make %-16s %s\n", $$1, $$2) } \
	  END { printf "For users:\n%s\nFor developers:\n%s", list[1], list[0] }' Makefile

build: $(INSTALLED)  ### compile the extension, and install the package into .venv in place

demo: ready  ### train a classifier of recordings with nn.LSTM and with VarLenLSTM, and compare them
	@$(BIN)/python examples/japanese_vowels.py $(ARGS)

demo-names: ready  ### tell the language of a name: a whole model of ragged text that padding does not move
	@$(BIN)/python examples/name_language $(ARGS)

demo-ppo: ready  ### reinforcement learning with memory: whole rollouts in one call, with state resets
	@$(BIN)/python examples/recurrent_ppo.py $(ARGS)

demo-distributed: ready  ### train in two processes, on batches balanced by their tokens
	@$(BIN)/python -m torch.distributed.run --standalone --nproc-per-node 2 examples/train_distributed.py $(ARGS)

demo-streaming: ready  ### hundreds of streams that come and go, one step at a time: latency, frames a second, the same bits
	@$(BIN)/python examples/streaming.py $(ARGS)

# What demos, checks, benchmarks and docs run on. Says nothing where everything is there.
ready:
	@mkdir -p $(dir $(LOG))
	@$(SUBMAKE) --question $(EXAMPLE_TOOLS) $(RUNNABLE) || { : >$(LOG); \
	  echo 'Brings $(VENV) up to date first: at most 3 minutes on two cores, and the download of torch. Log: $(LOG)'; }
	$(call step,$(TORCH_STAMP),Installing torch)
	$(call step,$(EXAMPLE_TOOLS),Installing what builds and what the examples use)
	$(call step,$(RUNNABLE),Compiling for this machine)

tools: $(TOOLS)  ## install what all these targets use into .venv

# Of every test one case in 29 (a prime, so that a grid's axes do not repeat in step with it) and at least one, but for
# tests of programs, builds and memory, each of which takes long: some 700 of 9,400 cases.
check: ready  ### run a part of the tests that touches every area, in less than two minutes (ARGS="-k lstm")
	$(call step,$(TOOLS),Installing all other tools)
	$(PYTEST) --quiet $(WITHOUT_PROGRAMS) --ignore-glob='*/test_memory.py' --every 29 $(ARGS)

test: $(TOOLS) $(INSTALLED)  ## run all tests: pytest (ARGS="..."), the same on the fallback, then the other test targets
	$(PYTEST) $(ARGS)
	VARLEN_RNN_DISABLE_EXTENSION=1 $(PYTEST) --quiet $(ON_FALLBACK) $(ARGS)
	$(MAKE) --no-print-directory --jobs 3 --output-sync=target ARGS= test-sanitizer test-math test-emulator test-mutants test-cuda-build test-wheel

# The thread sanitizer takes long, and who waits for whom is the same on all sets: one, and every third call, which
# is of every cell and dtype.
test-sanitizer: $(TOOLS)  ## run the kernels' C++ tests under the address, undefined-behaviour and thread sanitizers
	$(CONFIGURE_SANITIZER)
	$(BIN)/cmake --build $(SANITIZER) --target plan_test kernels_test int8_test
	$(SANITIZER)/plan_test
	$(SANITIZER)/kernels_test
	$(SANITIZER)/int8_test
	$(CONFIGURE_CPP_TESTS) -B $(SANITIZER)-thread -DVARLEN_RNN_SANITIZE=thread "-DVARLEN_RNN_ISAS=avx2;neon"
	$(BIN)/cmake --build $(SANITIZER)-thread --target kernels_test int8_test
	$(SANITIZER)-thread/kernels_test $$(seq 0 3 191)
	$(SANITIZER)-thread/int8_test $$(seq 0 3 767)

test-math: $(TOOLS)  ## hold exp, sigmoid and tanh to their errors in ULP (ARGS=--all: of every float)
	$(CONFIGURE_CPP_TESTS) -B $(CPP_TESTS)
	$(BIN)/cmake --build $(CPP_TESTS) --target math_test
	$(CPP_TESTS)/math_test $(ARGS)

# Results must be those of this machine's sets with fused multiply-add, bit by bit: of the programs of test-sanitizer,
# whose bits no compiler flag moves.
test-arm: $(TOOLS)  ## cross-compile the C++ tests for 64-bit Arm and run them in qemu: the same bits as here
	$(CONFIGURE_SANITIZER)
	CXX=aarch64-linux-gnu-g++ $(CONFIGURE_CPP_TESTS) -B $(ARM) -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
	$(BIN)/cmake --build $(SANITIZER) --target kernels_test int8_test
	$(BIN)/cmake --build $(ARM) --target plan_test kernels_test int8_test
	$(BIN)/python tests/cpp/arm.py $(SANITIZER) $(ARM)

test-compilers: $(TOOLS)  ## build with each of COMPILERS, and run a short list of tests
	@set -e; test -n '$(strip $(COMPILERS))'; for compiler in $(COMPILERS); do \
	  command -v $$compiler >/dev/null || { echo "test-compilers: $$compiler is not on this machine"; exit 1; }; \
	  folder=$(abspath build/compiler)-$$compiler; \
	  rm -rf $$folder; \
	  CXX=$$compiler VARLEN_RNN_EXTENSION=1 VARLEN_RNN_CUDA=0 $(BIN)/python setup.py --quiet build --build-lib $$folder; \
	  (cd $$folder && $(abspath $(BIN))/python -c 'import os, varlen_rnn, varlen_rnn._C as module; \
	    assert module.__file__.startswith(os.getcwd()), module; print(varlen_rnn.build_info()["compiler"])'); \
	  $(BIN)/python tests/wheel/short_list.py $$folder; \
	  (cd $$folder && $(ONE_THREAD) $(abspath $(BIN))/python -m pytest --quiet --numprocesses auto); \
	done

# Python changes the binding only, so one case in five of the short list will do.
test-pythons:  ## build with each of PYTHONS that is on PATH, and run a short list of tests
	@set -e; rm -rf build/lib.* build/bdist.*; ran=0; for version in $(PYTHONS); do \
	  python$$version -c '' 2>/dev/null || { echo "test-pythons: no python$$version here: skipped"; continue; }; \
	  folder=build/python-$$version; \
	  test -x $$folder/bin/python || python$$version -m venv $$folder; \
	  pip="$$folder/bin/python -m pip --disable-pip-version-check"; \
	  $$pip install --quiet --upgrade 'pip>=25.1'; \
	  $$pip install --quiet --no-compile '$(TORCH)'; \
	  $$pip install --quiet numpy --group build --group pytest; \
	  CCACHE_DIR=$(abspath build/ccache) CXX=$(abspath tests/hasty_c++) VARLEN_RNN_EXTENSION=1 VARLEN_RNN_CUDA=0 \
	    $$pip install --quiet --no-build-isolation --no-deps --force-reinstall .; \
	  $$folder/bin/python tests/wheel/short_list.py $$folder/short-list; \
	  (cd $$folder/short-list && ../bin/python -c 'import torch, varlen_rnn._C' && $(ONE_THREAD) ../bin/python -m pytest --quiet --numprocesses auto --every 5); \
	  ran=$$((ran + 1)); \
	done; test $$ran -gt 0 || { echo 'test-pythons: none of them is here'; exit 1; }

test-emulator: $(TOOLS)  ## run the CUDA kernels on the CPU, in the emulator
	$(BIN)/cmake -S csrc -B $(EMULATOR) -G Ninja -DVARLEN_RNN_EMULATE=ON -DVARLEN_RNN_WERROR=ON \
	  -DVARLEN_RNN_PYTHON=$(abspath $(BIN)/python) -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja)
	$(BIN)/cmake --build $(EMULATOR)
	$(EMULATOR)/simt_test
	VARLEN_RNN_EMULATED=$(abspath $(EMULATOR)) $(PYTEST) tests/cuda $(ARGS)

test-mutants: test-emulator  ## plant faults in the CUDA kernels, each of which the emulator must catch
	$(BIN)/python tests/cuda/mutants.py

test-cuda-build: $(TOOLS) $(INSTALLED)  ## hold the CUDA kernels to no spills, the registers of their launch bounds, and short steps
	$(BIN)/python tools/gpu/check_resources.py check
	$(BIN)/python -m tools.gpu.sass

# From clean folders, or the wheel would hold modules that are no longer there.
wheel: $(TOOLS)  ## build a wheel for this Python, and every torch from 2.10 on, into dist/, and audit it
	rm -rf dist/*.whl build/lib.* build/bdist.*
	$(PIP) wheel --verbose --no-build-isolation --no-deps --wheel-dir dist .
	$(BIN)/python tests/wheel/audit.py dist/*.whl

test-wheel: wheel  ## install the wheel in a clean environment, and run a short list of tests there
	$(BIN)/python tests/wheel/clean_environment.py dist/*.whl $(TORCHES)

# Of the other Python only its headers count, and of torch nothing but that it is 2.10 or newer.
gpu-prebuild: $(BUILD_TOOLS)  ## build what gpu-check runs, with no GPU (ARGS="--python python3.12 --arch 90")
	$(BIN)/python -m tools.gpu.prebuild $(ARGS)

# With the machine's own Python, which has a torch with CUDA, but for a dry run. PYTHONPATH counts here: it may hold
# packages that this Python lacks.
gpu-check: export PYTHONPATH := $(PYTHONPATH)
gpu-check:  ## on a machine with an NVIDIA GPU: test, calibrate, time: 400 s (ARGS=--dry-run: on the CPU)
	$(if $(findstring --dry-run,$(ARGS)),$(BIN)/python,$(PYTHON)) -m tools.gpu.check $(if $(OUT),--output '$(OUT)') $(ARGS)

bench: ready  ### run the short benchmarks (ARGS=--full: all of them)
	$(call step,$(TOOLS),Installing all other tools)
	$(BIN)/python -m benchmarks.run $(ARGS)

bench-steps: ready  ### time single steps of streams against ONNX Runtime and torch: 25 minutes (ARGS=--quick: one)
	$(call step,$(TOOLS),Installing all other tools)
	$(BIN)/python -m benchmarks.steps $(ARGS)

test-packages: $(TOOLS) $(RUNNABLE) $(PACKAGES_INSTALLED)  ## convert and compare models of public packages (ARGS="--only darts")
	$(PACKAGES)/bin/python -m benchmarks.packages $(ARGS)

docs: $(TOOLS) $(RUNNABLE)  ## build the pages of docs/ and the API page into docs/_build; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going docs docs/_build

# The checks stand in .pre-commit-config.yaml; here they run on every file that git does not ignore.
lint: $(TOOLS)  ## check format, types and forbidden includes and flags; changes nothing
	git ls-files -z --cached --others --exclude-standard | \
	  PRE_COMMIT_HOME=$(abspath $(VENV)/pre-commit) xargs -0 $(BIN)/python -m pre_commit run --verbose --files

format: $(TOOLS)  ## rewrite Python and C++ files in the project's format
	$(BIN)/ruff check --fix --exit-zero --quiet .
	$(BIN)/ruff format .
	git ls-files --cached --others --exclude-standard 'csrc/*' 'tests/cpp/*' 'tools/gpu/cuda/*' | \
	  grep -E '\.(cpp|h|cu|cuh)$$' | xargs $(BIN)/clang-format -i

clean:  ## remove everything built, but not .venv
	rm -rf build dist docs/_build *.egg-info varlen_rnn/*.so .pytest_cache .mypy_cache .ruff_cache $(VENV)/.installed*
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(TORCH_STAMP):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed")'
	if test -e $(VENV)/pyvenv.cfg && ! grep -q '^version = $(PYTHON_VERSION)\.' $(VENV)/pyvenv.cfg; then rm -r $(VENV); fi
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade 'pip>=25.1'
	$(PIP) install '$(TORCH)'
	rm -f $(VENV)/.stamp-*
	touch $@

$(BUILD_TOOLS): $(TORCH_STAMP) pyproject.toml
	$(PIP) install --group build
	touch $@

$(EXAMPLE_TOOLS): $(BUILD_TOOLS)
	$(PIP) install --group examples
	touch $@

$(TOOLS): $(EXAMPLE_TOOLS)
	$(PIP) install --group dev
	touch $@

# Verbose, because pip would hide what setup.py and the compiler say.
$(NATIVE): export VARLEN_RNN_CUDA_ARCHS = native
$(NATIVE): export VARLEN_RNN_WERROR = 0
$(INSTALLED) $(NATIVE): $(BUILD_TOOLS) setup.py $(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.*)
	$(PIP) install --verbose --no-build-isolation --editable .
	rm -f $(VENV)/.installed*
	touch $@

$(PACKAGES_TORCH): $(TORCH_STAMP)
	test -x $(PACKAGES)/bin/python || $(PYTHON) -m venv $(PACKAGES)
	$(PACKAGES_PIP) install --upgrade 'pip>=25.1'
	$(PACKAGES_PIP) install '$(TORCH)' --group build
	rm -f $(PACKAGES)/.stamp-*
	touch $@

# Of this package the metadata alone: what runs is the one in place. What cannot be installed is tried again next time.
# PyPI's torchaudio is linked to CUDA, which torch need not have; without its extension it imports with any torch.
$(PACKAGES_INSTALLED): $(PACKAGES_TORCH) benchmarks/packages/requirements.txt
	$(PACKAGES)/bin/python setup.py --quiet egg_info --egg-base $(PACKAGES)/lib/python*/site-packages
	if $(PACKAGES)/bin/python benchmarks/packages/install.py benchmarks/packages/requirements.txt; \
	  then touch $@; fi
	rm -f $(PACKAGES)/lib/python*/site-packages/torchaudio/lib/*.so

.PHONY: help build ready demo demo-names demo-ppo demo-distributed demo-streaming tools check test test-sanitizer \
  test-math test-arm test-compilers test-pythons test-emulator \
  test-mutants test-cuda-build wheel test-wheel test-packages gpu-prebuild \
  gpu-check bench bench-steps docs lint format clean
