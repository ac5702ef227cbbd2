# VENV and PYTHON can be set: make test VENV=/tmp/venv PYTHON=python3.12
VENV ?= .venv
PYTHON ?= python3
RUN ?= demo
JOBS ?= 2
# Folder with redial/, opendialkg/, uss/, crs-response-ratings/ and movielens-100k/, for the evidence; without it the worlds alone.
DATA ?= data
# Training seeds of the evidence; a claim needs three. One seed is a third of the time, and more can be added later.
SEEDS ?= 0 1 2
# Sizes of the benchmark; empty: those the device is fit for.
SIZES ?=
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
# Bytecode of all packages by all cores (pip uses one); a few files of others are templates and no Python. Without it every process
# compiles thousands of modules where PYTHONDONTWRITEBYTECODE is set, as it is in many containers.
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
SOURCES := setup.cfg pyproject.toml constraints.txt
# XLA:CPU allocates its temporaries anew on every call. Large pages, no trimming, and one arena: those of worker threads hold no
# block above 64 MiB, so that every large one would be mapped, zeroed and given back (other systems ignore all this).
MALLOC := GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184:glibc.malloc.arena_max=1

.PHONY: run test test-slow check bench evidence evidence-quick notebooks docs clean

run: $(VENV)/.run          ; $(MALLOC) $(BIN)/python experiments/ppo_redial.py $(RUN)
test: $(VENV)/.test        ; $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
test-slow: $(VENV)/.test   ; $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m slow
check: $(VENV)/.check      ; $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --pythonpath $(BIN)/python && PYTHONPATH=experiments $(BIN)/lint-imports
bench: $(VENV)/.bench      ; $(MALLOC) $(BIN)/python experiments/bench_ppo.py $(SIZES) && $(MALLOC) $(BIN)/python experiments/bench_dpo.py $(SIZES) && $(MALLOC) $(BIN)/python experiments/bench_grpo.py $(SIZES)
evidence: $(VENV)/.run     ; $(MALLOC) $(BIN)/python experiments/evidence.py --data-dir $(DATA) --seeds $(SEEDS)
evidence-quick: $(VENV)/.run ; $(MALLOC) $(BIN)/python experiments/evidence.py quick --data-dir $(DATA) --seeds $(SEEDS)
notebooks: $(VENV)/.notebooks ; $(BIN)/python tools/run_notebooks.py
docs: $(VENV)/.docs        ; $(BIN)/python tools/build_site.py
clean:                     ; rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and f'rlhf_jax needs Python >= 3.11, {sys.executable} is {sys.version.split()[0]}; try make PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(SOURCES) | $(VENV)/bin/python
	$(INSTALL) -e .
	$(COMPILE)
	touch $@

$(VENV)/.test: $(SOURCES) | $(VENV)/bin/python
	$(INSTALL) -e ".[test,browser,docs]"
	$(COMPILE)
	touch $@ $(VENV)/.run

# Torch and the last TRL with a PPO trainer: to be compared with, never imported by the library.
$(VENV)/.bench: $(SOURCES) | $(VENV)/bin/python
	$(INSTALL) -e ".[test,bench]"
	$(COMPILE)
	touch $@ $(VENV)/.run $(VENV)/.test

$(VENV)/.notebooks: $(SOURCES) | $(VENV)/bin/python
	$(INSTALL) -e ".[test,notebooks]"
	$(COMPILE)
	touch $@

$(VENV)/.docs: $(SOURCES) | $(VENV)/bin/python
	$(INSTALL) -e ".[docs]"
	$(COMPILE)
	touch $@ $(VENV)/.run

# The type check reads everything, the site's builder included.
$(VENV)/.check: $(SOURCES) | $(VENV)/bin/python
	$(INSTALL) -e ".[test,docs]"
	$(COMPILE)
	touch $@
