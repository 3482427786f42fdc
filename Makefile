# Every target sets up its own virtual environment once, from Python >= 3.11 and a Rust toolchain and nothing else.
#   make demo    make test    make check    make fuzz    make bench        VENV=/some/where make test

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV    ?= .venv
JOBS    ?= 2
SELECT  ?= not slow
PYTEST_ARGS ?=
FUZZ_SECONDS ?= 600
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.ddx-installed
SOURCES := pyproject.toml Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name Cargo.toml)

# The first interpreter that really runs and is new enough (a name on the PATH may be a shim without a Python behind it).
define find_python
for python in $(PYTHON) python3.12 python3.11 python3.13 python3 python; do \
  if command -v $$python >/dev/null && $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
    >/dev/null 2>&1; then found=$$python; break; fi; \
done; \
if [ -z "$${found:-}" ]; then \
  echo "error: Python >= 3.11 (with its venv module) is missing" >&2; \
  echo "hint: install it, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; \
fi
endef

define find_rust
if ! cargo --version >/dev/null 2>&1; then \
  echo "error: a Rust toolchain is missing (no working cargo)" >&2; \
  echo "hint: install it from https://rustup.rs, then open a new shell" >&2; exit 1; \
fi; \
wanted=$$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml); \
have=$$(rustc --version | cut -d' ' -f2 | cut -d- -f1); \
if [ "$$(printf '%s\n' "$$wanted" "$$have" | sort -V | head -1)" != "$$wanted" ]; then \
  echo "error: Rust >= $$wanted is needed, this is $$have" >&2; echo "hint: rustup update stable" >&2; exit 1; \
fi; \
if ! command -v cc >/dev/null && ! command -v gcc >/dev/null && ! command -v clang >/dev/null; then \
  echo "error: a C compiler is missing, which Rust needs to link" >&2; \
  echo "hint: install gcc or clang (Debian, Ubuntu: apt install build-essential)" >&2; exit 1; \
fi
endef

# uv takes a quarter of pip's processor time, and downloads side by side. It does not read pip's configuration, so where
# that names another index, or where uv fails, pip does it.
define install_packages
{ { ! $(BIN)/python -m pip config list | grep -qE '(index-url|no-index|constraint)=' && \
    $(BIN)/uv pip install --quiet --python $(BIN)/python -r "$(VENV)/requirements.txt" 2>/dev/null; } || \
  $(BIN)/python -m pip install --quiet --no-compile -r "$(VENV)/requirements.txt"; }
endef

# What ddx never imports is a third of what would be compiled: the packages' own tests, and all but a few of the models of
# transformers.
MODELS       := __init__|auto|bloom|clip|dino|encoder_decoder|gemma|qwen|siglip|t5|umt5|vit
NOT_IMPORTED := site-packages/(.*/tests?/|(pip|setuptools|mypy|mypyc)/|ray/(?!core|_private|_common|util|includes|dashboard/[^/]*$$)[a-z_]*/|transformers/models/(?!$(MODELS)))

.PHONY: help install demo test test-rust test-python test-zarrs test-cluster test-gpu check check-python check-rust fuzz bench

help:
	@echo "make demo    distil the bundled teacher and look at the pictures (about 6 minutes once installed)"
	@echo "make test    the tests, Rust and Python (VENV=$(VENV), JOBS=$(JOBS), PYTEST_ARGS=…, SELECT= with the slow ones)"
	@echo "make test-zarrs a store read by zarrs, the Zarr of Rust, which compiles for minutes"
	@echo "make test-cluster the tests of several processes, shares, restarts and Ray, which take minutes each"
	@echo "make test-gpu the tests that need a CUDA device, with compiled kernels"
	@echo "make check   formatters, linters, types"
	@echo "make fuzz    damaged inputs of fourteen kinds, each for FUZZ_SECONDS=$(FUZZ_SECONDS), and as long encodings of"
	@echo "             pictures against Pillow; what fails is kept"
	@echo "make bench   the benchmarks; results go to benchmarks/results/"
	@echo "make install only the virtual environment, with ddx as an editable install"

install: $(STAMP)

# The Rust side compiles while the packages download: one is bound by the processor, the other by the network. Bytecode is
# written here, beside the rest of the Rust build, because Python itself writes none where PYTHONDONTWRITEBYTECODE is set
# (most containers), and would compile some 3500 files in every process. pip would do it alone, on one core.
$(STAMP): $(SOURCES)
	@$(find_rust); $(find_python); \
	if [ ! -x $(BIN)/python ]; then echo "creating $(VENV) with $$($$found --version)"; $$found -m venv $(VENV); fi; \
	$(BIN)/python -m pip install --quiet 'maturin>=1.12.1,<2' uv; \
	echo "installing ddx and its packages into $(VENV) (the first time takes some minutes)"; \
	log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
	PYO3_PYTHON=$(abspath $(BIN)/python) cargo build --locked --release -p ddx-py --lib >"$$log" 2>&1 & core=$$!; \
	$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  o = p["optional-dependencies"]; print(*p["dependencies"], *o["test"], *o["eval"], *[r for r in o["dev"] if "[" not in r], sep="\n")' \
	  >"$(VENV)/requirements.txt"; \
	$(install_packages) || { kill $$core; exit 1; }; \
	$(BIN)/python -m compileall -q -j $(JOBS) -x '$(NOT_IMPORTED)' $(VENV)/lib python cli kernels tests >/dev/null 2>&1 || true; \
	wait $$core || { tail -40 "$$log" >&2; echo "error: the Rust side does not compile" >&2; exit 1; }; \
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	@touch $@

demo: $(STAMP)
	@$(BIN)/ddx demo

# Rust's part first; the table at the end says where the time went.
test: $(STAMP)
	@began=$$SECONDS; $(MAKE) --no-print-directory test-rust; \
	DDX_RUST_SECONDS=$$((SECONDS - began)) $(MAKE) --no-print-directory test-python

# The whole workspace, as in the build above: with another selection cargo turns on other features and compiles twice.
test-rust: $(STAMP)
	PYO3_PYTHON=$(abspath $(BIN)/python) cargo test --locked --release --workspace

test-python: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "$(SELECT)" --durations 15 $(PYTEST_ARGS)

# One of the slow tests, which `make test` leaves out.
test-zarrs: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/python/data/test_zarrs.py $(PYTEST_ARGS)

test-cluster: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster $(PYTEST_ARGS)

# Triton's interpreter, which the other tests take, is chosen once in a process.
test-gpu: $(STAMP)
	TRITON_INTERPRET=0 $(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

check: check-python check-rust

check-python: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check-rust: $(STAMP)
	cargo fmt --check
	cargo fmt --check --manifest-path tests/zarrs/Cargo.toml
	cargo clippy --locked --release --workspace --all-targets -- -D warnings

# One kind after the other; bytes from a random seed, which is printed. After damage, pictures that nothing is wrong with:
# a decoder that draws them wrong does not panic.
fuzz: $(STAMP)
	DDX_FUZZ_SECONDS=$(FUZZ_SECONDS) PYO3_PYTHON=$(abspath $(BIN)/python) \
	  cargo test --locked --release --workspace --test fuzz
	DDX_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python tests/python/fuzz_decoders.py

bench: $(STAMP)
	@$(BIN)/python -c 'import tomllib; o = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	  print(*[r for r in o["bench"] + o["eval"] if "[" not in r], sep="\n")' >"$(VENV)/bench.txt"
	@$(BIN)/python -m pip install --quiet -r "$(VENV)/bench.txt"
	@for script in benchmarks/*.py; do \
	  case $$script in benchmarks/_*) continue;; esac; \
	  echo "== $$script"; $(BIN)/python $$script || failed=yes; \
	done; [ -z "$${failed:-}" ]
