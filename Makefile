# `make demo` and `make test` set everything up by themselves; a second call finds the stamp and starts at once.
.PHONY: help setup demo test lint format bench lower-bounds wheel clean

PY := .venv/bin/python
DEMO_ARGS ?=
TEST_ARGS ?=

help:
	@echo "make setup         create .venv and install everything (CPU torch where there is no NVIDIA driver)"
	@echo "make demo          walk through a world from a sample picture; results under outputs/"
	@echo "                   (your own picture: make demo DEMO_ARGS='--image yours.jpg')"
	@echo "make test          run the tests (one file: make test TEST_ARGS=tests/spatia_env/test_env.py)"
	@echo "make lint          ruff and pyright"
	@echo "make bench         speed figures"
	@echo "make lower-bounds  install the lowest versions pyproject.toml states in a scratch venv and try them"
	@echo "make wheel         build dist/*.whl"

setup:
	@bash scripts/setup.sh

demo: setup
	@$(PY) -m spatia_env.cli demo $(DEMO_ARGS)

test: setup
	@$(PY) -m pytest $(TEST_ARGS)

lint: setup
	@.venv/bin/ruff check .
	@.venv/bin/pyright

format: setup
	@.venv/bin/ruff check --fix . && .venv/bin/ruff format .

bench: setup
	@set -e; for file in benchmarks/*.py; do [ -e "$$file" ] || continue; echo "== $$file" >&2; $(PY) "$$file"; done

lower-bounds: setup
	@$(PY) scripts/lower_bounds.py

wheel: setup
	@$(PY) -m pip wheel --no-deps --wheel-dir dist .

clean:
	rm -rf .venv .cache dist build outputs
