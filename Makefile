# make demo    the offline project, end to end: accuracy before, training, accuracy after
# make test    everything that runs in minutes, in random order: unit tests, real processes, short runs
# make check   ruff, types, generated docs
# make test-full   the rest: the slow tests, vLLM for real, a kill at random, the demo here and on vLLM
# make ci      check, test and test-full, two parts at a time: what every change must pass
# make test-vllm   what of test-full runs on a real vLLM server
# make bench   measurements with bounds on times, as one table and bench.json; for a machine with
#              nothing else to do; ARGS="--resume" keeps what held, ARGS="--only step view" takes some
# make gpu     what an NVIDIA GPU of 80 GB alone can show, by hand: 25 minutes at most, then gpu.json
#              has what was found; the next call goes on with what is left
# make soak    what takes longer than a CI run: the demo on eight seeds, check against run, kills; by hand

BIN := .venv/bin
# Torch processes that each take every core slow each other down several times over.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

# Tests depend on no order. make prints the number of this one: `make test ORDER=that` repeats it.
ifndef ORDER
ORDER := $(shell od -An -N3 -tu4 /dev/urandom | tr -d ' ')
endif
export ORDER
SHUFFLED = --random-order --random-order-seed=$(ORDER)
# Processes of `make test`; 0 is this one alone.
WORKERS ?= 2

.PHONY: setup demo test test-full ci test-vllm check bench gpu soak clean \
	full-vllm full-demo full-slow full-kill full-vllm-demo

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt scripts/setup.sh
	@bash scripts/setup.sh

demo: setup
	$(BIN)/rnow demo

test: setup
	$(BIN)/pytest -m "not slow" -n $(WORKERS) --dist loadfile $(SHUFFLED)

# Two parts at a time, since most of a part is waiting or one thread; what others wait for comes first.
# On a busy machine the demo takes longer than the 240 s that it is promised on two free cores: here
# its accuracy is what must hold, its time in `make bench`.
test-full: setup
	$(BIN)/python tests/bench/bench_cli.py
	$(MAKE) -j2 full-vllm full-demo full-slow full-vllm-demo full-kill

ci: setup
	$(BIN)/python tests/bench/bench_cli.py
	$(MAKE) -j2 WORKERS=0 .venv-vllm/.ready check test full-vllm full-demo full-slow full-vllm-demo full-kill

full-vllm: .venv-vllm/.ready
	$(BIN)/pytest -m vllm

full-demo:
	$(BIN)/python tests/bench/bench_demo.py --seeds 0 --max-seconds 900 --save .demo.json

full-slow:
	$(BIN)/pytest -m "slow and not vllm" -o cache_dir=.pytest_cache/slow $(SHUFFLED)

full-kill:
	$(BIN)/python tests/bench/soak_kills.py --kills 1

full-vllm-demo: full-vllm full-demo
	$(BIN)/python tests/bench/bench_demo_vllm.py --seeds 0 --kill --local .demo.json

# Engine, runs and recovery on real vLLM servers, which have an environment of several GB of their own.
test-vllm: setup full-vllm

.venv-vllm/.ready: scripts/setup_vllm.sh | .venv/.ready
	@bash scripts/setup_vllm.sh

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python scripts/make_configuration_doc.py --check
	$(BIN)/python scripts/make_gpu_doc.py --check
	$(BIN)/python scripts/make_metrics_doc.py --check
	$(BIN)/python scripts/make_messages_doc.py --check
	$(BIN)/python scripts/make_performance_doc.py --check

bench: setup .venv-vllm/.ready
	$(BIN)/python tests/bench/run_all.py $(ARGS)

gpu: setup
	$(BIN)/python tests/bench/gpu_all.py --resume $(ARGS)

soak: setup .venv-vllm/.ready
	$(BIN)/python tests/bench/bench_demo.py --seeds 0 1 2 3 4 5 6 7
	$(BIN)/python tests/bench/bench_demo.py --seeds 0 1 2 --lag 0 1
	$(BIN)/python tests/bench/bench_check_matrix.py
	$(BIN)/python tests/bench/soak_kills.py
	$(BIN)/python tests/bench/soak_kills.py --lag 1
	$(BIN)/python tests/bench/bench_ranks.py demo
	$(BIN)/python tests/bench/bench_controller.py --nodes 64 --rollouts 8192
	$(BIN)/python tests/bench/bench_cluster.py --python .venv-vllm/bin/python
	$(BIN)/python tests/bench/bench_estimates.py
	$(BIN)/python tests/bench/bench_demo_vllm.py --seeds 0 1 2 --kill

clean:
	rm -rf .venv build src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
