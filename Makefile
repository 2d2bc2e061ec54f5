# Start with `make demo` and `make test`. `make help` lists all targets.
PYTHON ?= python3
ENGINE ?= vllm
VENV   := .venv
# Installed without dependencies: the wheel requires torch, but its API does not need it.
NIXL   := 'nixl-cu12>=1.5,<2'
BIN    := $(VENV)/bin
# Tests wait as much as they compute: three workers on two cores. An idle worker takes over
# tests of a busy one.
SIDE_BY_SIDE := -n 3 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint cluster cluster-down golden clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/demo.stamp ## a batch through one prefill and one decode worker (ENGINE=simulator: without vLLM)
	$(BIN)/python -m hpc_dynamo.demo --engine $(ENGINE)

test: $(VENV)/dev.stamp ## all tests: local, Slurm cluster (root on Debian) and vLLM; prints first what it installs
	@$(BIN)/python -m tests.suite

test-fast: $(VENV)/dev.stamp ## some three minutes on two cores: no cluster, no vLLM, few whole jobs
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not cluster and not vllm and not slow"

lint: $(VENV)/dev.stamp ## ruff and strict mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

golden: $(VENV)/dev.stamp ## write the rendered scripts to sbatch/
	HPC_DYNAMO_ACCEPT=1 $(BIN)/python -m pytest -q tests/unit/launch/test_sbatch.py

cluster: $(VENV)/dev.stamp ## a three-node Slurm cluster on this machine and a shell to use it (root)
	$(BIN)/python -m tests.cluster.slurm shell

cluster-down: $(VENV)/dev.stamp ## remove a cluster that was kept
	$(BIN)/python -m tests.cluster.slurm down

clean: ## remove the environment of this checkout (not the cached vLLM)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@echo "creating $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hpc-dynamo needs Python 3.11 or newer: make PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml | $(VENV)/bin/python
	@echo "installing hpc-dynamo with NIXL into $(VENV)"
	@$(BIN)/pip install --quiet --editable . numpy
	@$(BIN)/pip install --quiet --no-deps $(NIXL)
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(VENV)/bin/python
	@echo "installing hpc-dynamo with NIXL, MPI and the test tools into $(VENV)"
	@$(BIN)/pip install --quiet --editable '.[mpi,dev]' numpy
	@$(BIN)/pip install --quiet --no-deps $(NIXL)
	@touch $@
