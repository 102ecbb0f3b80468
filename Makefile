# Every command of the project. `make demo` and `make test` set up .venv themselves.
# Options pass through ARGS: make test ARGS="-k schedule -x", make demo ARGS=--quick.
# Tests run in WORKERS processes of one thread each. Each has half of them, in order, so that a file has
# its fixtures once; who is done takes from the end of what the other has left.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
ARGS ?=
BENCH ?= *
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
PINS := requirements/ci.txt
STAMP := $(VENV)/.installed
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --constraint $(PINS)
WHEEL_VENV := build/wheel-venv

HEADERS := $(VENV)/onnxruntime-headers

# Not in .venv, where importing it would fail for want of CUDA; the tests go round that.
CONVERTERS := build/torch-tensorrt
# Not in .venv either, where diffusers would load it in every test.
TORCHAO := build/torchao

.PHONY: help demo test test-times lint format wheel bench bench-compare mutants runner converters quantised

help:
	@echo "make demo | test | test-times | lint | format | wheel | bench | bench-compare | mutants | runner | converters | quantised   (options in ARGS)"

# Installed again only when the project's metadata or the pins change. torch goes first and alone.
$(STAMP): pyproject.toml $(PINS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) torch setuptools
	$(BIN)/python $(PIP_INSTALL) --no-build-isolation --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/deltapass demo --overwrite $(ARGS)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal $(ARGS)

# The same, and where the time went: totals of rooms, and the dearest test functions.
test-times:
	$(MAKE) test ARGS="--times $(ARGS)"

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy deltapass backends examples

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Built from a clean build/ (setuptools would ship files that were deleted since the last build),
# installed into a new environment that holds no editable install, and checked from another folder.
wheel: $(STAMP)
	rm -rf build dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .
	$(PYTHON) -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/python $(PIP_INSTALL) torch
	$(WHEEL_VENV)/bin/python $(PIP_INSTALL) dist/*.whl
	cd / && $(CURDIR)/$(WHEEL_VENV)/bin/python -P $(CURDIR)/.ci/check_wheel.py $(CURDIR)

# The C++ runner of plan bundles, as build/runner/runner. Its headers come through npm.
runner: $(STAMP)
	$(BIN)/python runner/fetch_headers.py $(HEADERS)
	cmake -S runner -B build/runner -DORT_INCLUDE=$(CURDIR)/$(HEADERS) -DPython3_EXECUTABLE=$(CURDIR)/$(BIN)/python
	cmake --build build/runner

# The real torch-tensorrt (of TensorRT-RTX), without a GPU: every body of tiny models as an engine.
converters: $(STAMP)
	$(BIN)/python $(PIP_INSTALL) --no-deps --upgrade --target $(CONVERTERS) torch-tensorrt-rtx dllist
	PYTHONPATH=$(CONVERTERS) $(MAKE) test ARGS="-m slow tests/backends/tensorrt/test_lowering.py"

# Weights that the real torchao has quantised.
quantised: $(STAMP)
	$(BIN)/python $(PIP_INSTALL) --no-deps --upgrade --target $(TORCHAO) torchao
	PYTHONPATH=$(TORCHAO) $(MAKE) test ARGS="tests/test_quantised_weights.py $(ARGS)"

# How many small faults in the modules that decide the tests would notice (tests/README.md).
mutants: $(STAMP)
	$(BIN)/python $(PIP_INSTALL) --no-build-isolation --editable '.[mutation]'
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutants.py $(ARGS)

# All that run under pytest-benchmark, or one of them (BENCH=hot_path), or a script (BENCH=latency).
bench: $(STAMP)
	if ls benchmarks/test_$(BENCH).py > /dev/null 2>&1; \
	then OMP_NUM_THREADS=1 $(BIN)/pytest -p benchmark -s benchmarks/test_$(BENCH).py $(ARGS); \
	else $(BIN)/python benchmarks/$(BENCH).py $(ARGS); fi

# Two saved runs: make bench-compare A=0001 B=0002
bench-compare: $(STAMP)
	$(BIN)/python benchmarks/compare.py $(A) $(B) $(ARGS)
