PYTHON := .venv/bin/python

.PHONY: setup demo test lint clean

setup: ## Create .venv; returns at once when it is up to date
	@scripts/setup.sh

demo: setup ## Generate the example's texts plain, strict and relaxed, and compare
	@$(PYTHON) examples/demo_run.py

test: setup ## Run all tests, on CPU, two files at a time
	@$(PYTHON) -m pytest -n 2 --dist loadfile

lint: setup ## Check style and types
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy

clean: ## Remove what runs leave behind, except .venv
	rm -rf out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
