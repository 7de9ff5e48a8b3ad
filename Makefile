# The commands of the README. Everything runs from a fresh clone; nothing needs to be installed by hand.

PYTHON ?= python3
VENV_PYTHON := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help install quickstart test clusters soak lint format proto lock clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1	\2/' | expand -t 22

install: ## Create .venv and .venv-engine; a second run does nothing
	@$(PYTHON) deploy/install.py

quickstart: install ## Fine-tune the bundled model, serve it, show before and after
	@$(VENV_PYTHON) sdk/examples/quickstart.py

test: install ## Run everything that needs no GPU
	@$(PYTHON) deploy/install.py --cpu-engine
	@$(VENV_PYTHON) -m pytest -n 2 --no-loadscope-reorder

clusters: install ## Install Docker, Compose and Slurm (as root, on Debian) and run what needs them
	@sh tests/install_clusters.sh
	@$(VENV_PYTHON) -m pytest -m cluster

soak: install ## Run what takes long: faults at every step, fuzzing, whole weights end to end
	@$(PYTHON) deploy/install.py --cpu-engine
	@$(VENV_PYTHON) -m pytest -m soak

lint: ## Lint, format check and strict types, without installing
	@$(VENV_PYTHON) -m pytest -q tests/architecture

format: ## Rewrite the sources in the house format
	@.venv/bin/ruff check --fix-only -q . ; .venv/bin/ruff format -q .

proto: ## Generate proto/gen from the contract
	@PATH="$(CURDIR)/.venv/bin:$$PATH" $(VENV_PYTHON) proto/generate.py

lock: ## Resolve every dependency anew and write the constraints files
	@$(PYTHON) deploy/install.py --lock

clean: ## Remove environments and caches
	@rm -rf .venv .venv-engine .venv-engine-cpu .quickstart .mypy_cache .pytest_cache .ruff_cache .hypothesis
