# make demo    installs, then runs the full pipeline on synthetic sounds: three minutes on two cores
# make test    installs what tests need, then runs all tests
# make check   checks style, types and imports
PYTHON ?= python3
bin := .venv/bin

.PHONY: demo test test-unit check format clean

demo: .venv/installed
	$(bin)/python jobs/pipeline.py configs/demo.yaml

test: .venv/tools
	$(bin)/python -m pytest -n 2 tests/unit tests/browser
	$(bin)/python -m pytest -n 2 --dist loadfile tests/ray tests/gpu tests/jobs tests/cluster

test-unit: .venv/tools
	$(bin)/python -m pytest -n 2 tests/unit

check: .venv/tools
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/lint-imports

format: .venv/tools
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

clean:
	rm -rf .venv runs data/demo

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "raysound needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv .venv
	@echo 'installing into .venv: some minutes and 8 GB, most of it for PyTorch'
	$(bin)/python -m pip install --upgrade 'pip>=25.1'
	$(bin)/python -m pip install --constraint constraints.txt --editable .
	touch $@

.venv/tools: .venv/installed
	$(bin)/python -m pip install --constraint constraints.txt --group test --group check
	touch $@
