# `make demo` and `make test` do all the set-up they need. Without make: python3 jobs/setup_env.py demo, then jobs/demo.py.
PYTHON ?= python3
VENV := .venv/bin

.PHONY: help setup demo test soak lint bench notebook cluster cluster-down clean

help:
	@echo "make demo   set-up + the main job on this machine: corpus, shards, training, figures, audio (about 10 minutes)"
	@echo "make test   set-up + every test this machine can run"
	@echo "make setup  .venv with everything;  also: make lint, bench, soak (hours)"
	@echo "make notebook  notebooks/visualize_cd4mt.ipynb from its first cell to its last, on a small corpus"
	@echo "make cluster, cluster-down  a real SLURM on this machine to practise on (Debian's packages)"

setup:
	@$(PYTHON) jobs/setup_env.py all

demo:
	@$(PYTHON) jobs/setup_env.py demo
	@$(VENV)/python jobs/demo.py

test: setup lint
	@$(VENV)/python -m pytest -m "not soak" -n 3 --dist loadfile --no-loadscope-reorder

soak: setup
	@$(VENV)/python -m pytest -m soak

lint: setup
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/mypy

bench:
	@$(PYTHON) jobs/setup_env.py bench
	@$(VENV)/python -m benchmarks

# What was executed lies in build/; CD4MT_TRACKS and CD4MT_STEPS make it more than a try.
notebook: setup
	@mkdir -p build
	@CD4MT_TRACKS=$${CD4MT_TRACKS:-6} CD4MT_STEPS=$${CD4MT_STEPS:-8} \
	  $(VENV)/jupyter-execute --output=../build/visualize_cd4mt notebooks/visualize_cd4mt.ipynb

cluster: setup
	@$(VENV)/python -m tests.cluster up

cluster-down: setup
	@$(VENV)/python -m tests.cluster down

clean:
	rm -rf .venv build *.egg-info
