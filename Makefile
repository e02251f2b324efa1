# Two commands do everything on a machine with Python >= 3.11 and make:
#   make repro [PROFILE=demo]    rebuild every table, figure and page of a profile
#   make test                    the fast tests; `make test-long` the others, `make test-all` both
PYTHON ?= python3
PROFILE ?= demo

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: repro test test-long test-all lint env lab lock
repro: $(READY)
	$(BIN)/python -m cure.cli repro --profile "$(PROFILE)"

# Two workers of one thread each; a file of tests belongs to one of them.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs -n 2 --dist loadfile --no-loadscope-reorder

test: $(READY)
	$(PYTEST) -m "not long"

test-long: $(READY)
	$(PYTEST) -m long

test-all: $(READY)
	$(PYTEST)

lint: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

lab: $(READY)
	$(BIN)/jupyter lab

env: $(READY)

# The constraints pin every package. Torch's pin takes the CPU build where such a wheel is visible to pip and the usual build (CUDA on Linux)
# elsewhere; `UV_TORCH_BACKEND=cpu uv pip install -p .venv/bin/python -c constraints.txt -e '.[lab,dev]'` takes the CPU build anywhere.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] in ((3, 11), (3, 12), (3, 13)) else \
	    f"CURE needs Python 3.11 to 3.13, {sys.executable} is {sys.version.split()[0]}: try make PYTHON=python3.11")'
	@echo "setting up $(VENV): about two minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[lab,dev]'
	touch $@

# Maintainers, after editing pyproject.toml (needs uv): both lock files from one resolution.
lock:
	uv lock --quiet
	uv export --quiet --no-hashes --no-emit-project --no-annotate --no-header --all-extras -o constraints.txt > /dev/null
	uv export --quiet --no-hashes --no-emit-project --no-annotate --no-header -o runtime.lock > /dev/null

