# Signet: set up, serve, test.
#
#   make serve            build what is needed (no torch) and serve on http://127.0.0.1:8000 (HOST=..., PORT=...)
#   make test             set up everything for development and run all tests
#   make sanitize         run the engine's tests with AddressSanitizer and UBSan, in a build of its own (needs g++)
#   make lint             ruff, mypy --strict, clang-format
#   make format           let ruff and clang-format rewrite the sources
#   make docs             write the tables of settings in docs/operations.md anew
#   make proto            compile the messages of gRPC, app/rpc/open_inference.proto, anew
#
# Slow checks; the last three leave the log of their last run in docs/:
#
#   make chaos            a minute of good, bad and vanishing requests against the service (CHAOS_ARGS)
#   make soak             ten minutes of ordinary requests: no error, flat memory (SOAK_ARGS)
#   make image-test       build the container image and try it as it is deployed (needs docker, or buildah and podman)
#   make ray-test         try the service on a Ray cluster of two nodes
#
#   make clean            remove the environment and everything built
#
# It needs Python 3.11 or newer (PYTHON=... picks one) and a C++17 compiler (CXX=... picks one).

HOST ?= 127.0.0.1
PORT ?= 8000
SHELL := /bin/bash

VENV := .venv
SANITIZED := build/sanitize
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
ENGINE_SOURCES := $(wildcard models/xnor/src/*.h models/xnor/src/*.cpp)
NATIVE_TESTS := $(wildcard tests/models/xnor/native/*.cpp)
CPP := $(ENGINE_SOURCES) $(NATIVE_TESTS)
BUILD_INPUTS := pyproject.toml CMakeLists.txt $(ENGINE_SOURCES)
IS_NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
CAN_BUILD := -c 'import ensurepip, os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")'
HAS_COMPILER := for name in "$${CXX:-c++}" c++ g++ clang++; do command -v "$$name" >/dev/null && break; done || \
	{ echo "Signet needs a C++17 compiler (g++ or clang++); name one with: make CXX=/path/to/g++" >&2; exit 1; }

PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	"$$name" $(IS_NEW_ENOUGH) 2>/dev/null && { command -v "$$name"; break; }; done)

.PHONY: serve test lint format docs proto chaos soak image-test ray-test sanitize clean
.DELETE_ON_ERROR:

serve: $(VENV)/.serving
	exec $(BIN)/signet serve --host "$(HOST)" --port "$(PORT)"

test: $(VENV)/.development
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# A sanitizer's report goes to the real stderr, hence pytest's --capture=sys.
sanitize: $(SANITIZED)/.built
	$(SANITIZED)/engine/kernels_test
	library() { "$${CXX:-c++}" -print-file-name="$$1"; }; \
	LD_PRELOAD="$$(library libasan.so):$$(library libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
	UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc \
	$(SANITIZED)/venv/bin/python -m pytest --capture=sys --ignore tests/models/xnor/test_native_kernels.py \
		tests/models/xnor tests/models/packing/test_file.py $(PYTEST_ARGS)

lint: $(VENV)/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(VENV)/.development
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

docs: $(VENV)/.development
	$(BIN)/python docs/settings_table.py

# This compiler's output runs with protobuf 6 and 7; it needs an environment of its own, for its own protobuf.
proto: | $(BIN)/python
	@$(BIN)/python -m venv build/proto
	@$(PIP) --python build/proto/bin/python install --quiet grpcio-tools==1.80.0
	build/proto/bin/python -m grpc_tools.protoc --proto_path . --python_out . --pyi_out . app/rpc/open_inference.proto

chaos: $(VENV)/.development
	$(BIN)/python -m tests.e2e.chaos $(CHAOS_ARGS)

# The log shows the run as it goes, and stays as docs/*.log; the last line is PASSED or FAILED.
soak: $(VENV)/.development
	set -o pipefail; $(BIN)/python -m tests.e2e.soak --figure docs/soak.png $(SOAK_ARGS) | tee docs/soak.log

image-test:
	set -o pipefail; deploy/test_image.sh 2>&1 | tee docs/image-test.log

ray-test: $(VENV)/.development
	@$(PIP) install --quiet --editable '.[dev,ray]'
	set -o pipefail; $(BIN)/python -m tests.deploy.two_nodes | tee docs/ray-test.log

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find app models training tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@python="$(PYTHON)"; \
	[ -n "$$python" ] && "$$python" $(IS_NEW_ENOUGH) 2>/dev/null || \
		{ echo "Signet needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	"$$python" $(CAN_BUILD) 2>/dev/null || \
		{ echo "$$python lacks its venv module or its C headers (Debian: python3-venv python3-dev)" >&2; exit 1; }; \
	"$$python" -m venv $(VENV)

# The stamps hold the time of the last install: a start with nothing changed skips pip altogether.
$(VENV)/.serving: $(BUILD_INPUTS) | $(BIN)/python
	@$(HAS_COMPILER)
	@echo "Installing Signet into $(VENV) and building the engine (a minute or two) ..."
	@$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/.development: $(BUILD_INPUTS) | $(BIN)/python
	@$(HAS_COMPILER)
	@echo "Installing Signet with everything for development into $(VENV) (several minutes) ..."
	@$(PIP) install --quiet --editable '.[dev]'
	@touch $(VENV)/.serving $@

# The engine alone, in an environment that finds all else in $(VENV): its own site comes first.
$(SANITIZED)/.built: $(BUILD_INPUTS) $(NATIVE_TESTS) | $(VENV)/.development
	@echo "Building the engine with sanitizers into $(SANITIZED) (a few minutes) ..."
	@rm -rf $(SANITIZED)/venv
	@$(BIN)/python -m venv --without-pip $(SANITIZED)/venv
	@$(PIP) --python $(SANITIZED)/venv/bin/python install --quiet --no-deps --editable . \
		-C build-dir=$(SANITIZED)/engine -C cmake.define.SIGNET_SANITIZE=ON
	@site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	$(BIN)/python -c "$$site" > "$$($(SANITIZED)/venv/bin/python -c "$$site")/development.pth"
	@touch $@
