# make demo    the offline project, end to end: accuracy before, training, accuracy after
# make test    what a change must pass: static checks apart, everything that runs in minutes
# make check   ruff, types, generated docs
# make test-full   the rest: real kills, real Ctrl-C, benches with bounds
# make soak    what takes longer than a CI run: three seeds of the demo; run by hand

BIN := .venv/bin
# Torch processes that each take every core slow each other down several times over.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup demo test test-full check soak clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt scripts/setup.sh
	@bash scripts/setup.sh

demo: setup
	$(BIN)/rnow demo

test: setup
	$(BIN)/pytest -m "not slow"

test-full: setup
	$(BIN)/pytest -m slow

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python scripts/make_configuration_doc.py --check

soak: setup
	$(BIN)/python tests/bench/bench_demo.py --seeds 0 1 2

clean:
	rm -rf .venv build src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
