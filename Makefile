# Everything lives in a virtual environment under the project; delete .venv and build/ to start afresh.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo_out

.PHONY: help setup demo test test-fast bench docs lint format sanitize wheel sdist clean
help:
	@echo "make demo       distil RetinaNet and Faster R-CNN on the embedded data set (QUICK=1: RetinaNet only; DATA=folder: your COCO data)"
	@echo "make test       every test;  make test-fast: those of a few seconds"
	@echo "make bench      beside every peer: errors, speed, memory (BENCH_ARGS=\"--shapes issue\" or \"--quick\")"
	@echo "make docs       the documentation as a site, in site/"
	@echo "make wheel      a wheel in dist/;  make sdist: the sources as an archive there"
	@echo "make lint       ruff, clang-format, mypy;  make format: apply the first two"
	@echo "make sanitize   the operator's tests under AddressSanitizer and UndefinedBehaviorSanitizer"

# What is compiled or declared decides when to install again; Python sources are used in place.
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)

$(VENV)/torch.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch>=2.11" "torchvision>=0.26" "setuptools>=77" wheel ninja "pybind11>=2.12"
	touch $@

# Without build isolation: the extension is built against the torch that was just installed, and torch is fetched once.
$(VENV)/project.stamp: $(VENV)/torch.stamp $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[test]"
	touch $@

$(VENV)/lint.stamp: $(VENV)/project.stamp
	$(BIN)/python -m pip install --quiet "ruff>=0.11" "mypy>=1.15" "clang-format>=18"
	touch $@

# Only what the extra names: installing the project once more would compile it once more.
$(VENV)/docs.stamp: $(VENV)/project.stamp
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])" \
		| xargs $(BIN)/python -m pip install --quiet
	touch $@

setup: $(VENV)/project.stamp

demo: setup
	$(BIN)/python -m kd.demo --out "$(OUT)" $(if $(QUICK),--quick) $(if $(DATA),--data "$(DATA)") $(DEMO_ARGS)

test: setup
	$(BIN)/python -m pytest

test-fast: setup
	$(BIN)/python -m pytest -m "not slow"

bench: setup
	$(BIN)/python -m benchmarks.run $(BENCH_ARGS)

docs: $(VENV)/docs.stamp
	$(BIN)/mkdocs build --strict

wheel: $(VENV)/torch.stamp
	$(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

sdist: $(VENV)/torch.stamp
	$(BIN)/python setup.py -q sdist

CPP_FILES = $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

lint: $(VENV)/lint.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)
	$(BIN)/mypy

format: $(VENV)/lint.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

sanitize: setup
	bash tests/ssim/sanitize.sh $(BIN)/python

clean:
	rm -rf $(VENV)/project.stamp build dist site *.egg-info fused_ssim/*.so .pytest_cache .ruff_cache .mypy_cache
