# Start with `make demo` and `make test`. `make help` lists all targets.
PYTHON ?= python3
ENGINE ?= vllm
VENV   := .venv
BIN    := $(VENV)/bin
# Tests start thousands of Python processes. Without .pyc files each compiles all its modules.
unexport PYTHONDONTWRITEBYTECODE
# Versions and hashes of every package: requirements/README.md.
LOCKED := $(BIN)/pip install --quiet --require-hashes -r
NIXL   := $(BIN)/pip install --quiet --require-hashes --no-deps -r requirements/nixl.lock
HPC_DYNAMO := $(BIN)/pip install --quiet --no-deps --editable .
# Tests wait as much as they compute: three workers on two cores. An idle worker takes over
# tests of a busy one.
SIDE_BY_SIDE := -n 3 --dist worksteal
# `make test` also runs tests/integration, and property tests with more examples.
FAST := --hypothesis-profile=fast -m "not cluster and not vllm and not sglang and not slow" tests/unit

COMPILE := uv pip compile --quiet --upgrade --universal --generate-hashes --no-annotate \
	--no-header --no-emit-index-url --python-version 3.11

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast coverage faults fuzz lint docs lock cluster cluster-down golden clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/demo.stamp ## a batch through one prefill and one decode worker (ENGINE=sglang, ENGINE=simulator: without vLLM)
	$(BIN)/python -m hpc_dynamo.demo --engine $(ENGINE)

test: $(VENV)/dev.stamp ## all tests: local, Slurm cluster (root on Debian) and vLLM; prints first what it installs
	@$(BIN)/python -m tests.suite

test-fast: $(VENV)/dev.stamp ## unit tests without the slow ones: under two minutes on two cores
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(FAST)

faults: $(VENV)/dev.stamp ## the whole fault suite: make faults SEEDS=3; fills the table of the reliability page
	-$(BIN)/python -m pytest -n 2 --dist loadfile --durations=15 --fault-seeds=$(or $(SEEDS),1) \
		--fault-rows=tests/faults/rows.jsonl tests/faults
	$(BIN)/python -m tools.fault_table

fuzz: $(VENV)/dev.stamp ## mutated inputs for all readers: make fuzz SECONDS=3600 SEED=1
	$(BIN)/python -m tests.fuzz $(or $(SECONDS),60) $(or $(SEED),1)

coverage: $(VENV)/dev.stamp ## the fast suite with its coverage; fails below the floor in pyproject.toml
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(FAST) --cov --cov-report=term --cov-report=xml:dist/coverage.xml

lint: $(VENV)/dev.stamp ## ruff, strict mypy, prose, and the docs: generated pages and links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/prose.py
	$(BIN)/python -m tools.reference --check
	$(BIN)/mkdocs build --quiet --strict

docs: $(VENV)/dev.stamp ## generate the reference pages and build the site into dist/site
	$(BIN)/python -m tools.reference
	$(BIN)/mkdocs build --quiet --strict

lock: ## update requirements/*.lock from pyproject.toml (needs uv)
	$(COMPILE) --extra dev --extra mpi --extra docs pyproject.toml -o requirements/dev.lock
	$(COMPILE) pyproject.toml requirements/run.in -o requirements/run.lock
	$(COMPILE) --no-deps requirements/nixl.in -o requirements/nixl.lock

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

$(VENV)/demo.stamp: pyproject.toml requirements/run.lock | $(VENV)/bin/python
	@echo "installing hpc-dynamo with NIXL into $(VENV)"
	@$(LOCKED) requirements/run.lock
	@$(NIXL)
	@$(HPC_DYNAMO)
	@touch $@

$(VENV)/dev.stamp: pyproject.toml requirements/dev.lock | $(VENV)/bin/python
	@echo "installing hpc-dynamo with NIXL, MPI and the test tools into $(VENV)"
	@$(LOCKED) requirements/dev.lock
	@$(NIXL)
	@$(HPC_DYNAMO)
	@touch $@
