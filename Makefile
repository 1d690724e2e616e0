# make demo    installs, which takes minutes, then runs the full pipeline on synthetic sounds: three minutes on two cores
# make test    installs what tests need, then runs them all
# make check   style, types, and who may import whom
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
	$(bin)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(bin)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/tools: .venv/installed
	$(bin)/python -m pip install --quiet --constraint constraints.txt --group test --group check
	touch $@
