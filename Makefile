# Everything here works on a fresh machine with Python 3.11 or newer and make.
PYTHON ?= python3
BIN := .venv/bin

# A machine with a GPU has its own PyTorch: GPU_PYTHON=python3 takes that instead of the venv's.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

.PHONY: install demo test test-slow test-services check docs bench bench-gpu fuzz clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch -e '.[dev]'
	touch $@

demo: install
	$(BIN)/margrave demo

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not service and not slow" -n 3 --dist worksteal

# What compiles, kills or repeats for minutes.
test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not service" -n 3 --dist worksteal tests

# What starts a server or a browser, in turns.
test-services: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m service -n 2 --dist loadfile tests

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The documentation as a site, in build/site; a link that leads nowhere fails.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: install
	$(BIN)/python benchmarks/head.py

bench-gpu:
	PYTHONPATH=src $(GPU_PYTHON) -m pytest tests/gpu
	PYTHONPATH=src $(GPU_PYTHON) benchmarks/gpu.py

# For as long as wanted: make fuzz MUTATIONS=10000000
MUTATIONS ?= 100000
fuzz: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/data/fuzz.py $(MUTATIONS)

clean:
	rm -rf .venv build src/*.egg-info
