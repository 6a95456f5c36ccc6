# `make report` and `make test` need a Python >= 3.11 and a package index, and nothing else.
# The first of these that is new enough makes the environment; to choose: `make test PYTHON=python3.12`.
PYTHON ?= python3 python3.13 python3.12 python3.11
BIN := .venv/bin
# written last, so that an environment whose installation was cut off is made again
INSTALLED := .venv/installed
# `make newest` makes a second environment; to choose its Python: `make newest NEWEST_PYTHON=/path/to/python3.13`
NEWEST_PYTHON ?= $(shell .ci/newest-python)
NEWEST := .venv-newest
# `make docs` makes a third environment: that of .venv, and what the site needs
DOCS := .venv-docs
# what `make newest` runs: whatever reads programs or masks, and users' scripts, in a few minutes
COVERING = pathjax tests/test_tracing tests/test_masks tests/test_neural_tangents tests/test_frameworks \
    $(addprefix tests/test_paths/test_,listed.py refusals.py rules.py) \
    $(addprefix tests/test_ntk/test_layerwise.py::test_,$(COVERING_KERNELS))
COVERING_KERNELS = kernel_of_kept_weights_and_two_batches_equals_that_of_jacobians \
    networks_that_are_not_piecewise_linear_have_their_kernel_too
FUZZ_NETWORKS ?= 1200
FUZZ_SEED ?= 0

.DEFAULT_GOAL := help
.PHONY: help report test newest long mutants chaos fuzz lint types bench bench-long docs docs-links clean

help: ## say what each target does
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile

report: $(INSTALLED) ## compare prunings on the digits data set and write runs/report/report.html
	$(BIN)/python -m experiments report

test: lint types ## lint, types, tests and doctests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not long"

newest: $(NEWEST)/installed ## doctests and a covering part of the tests with the newest Python found and the newest releases that setup.cfg allows
	$(NEWEST)/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not long" $(COVERING)

long: $(INSTALLED) ## the tests that `make test` leaves out: very deep networks, and all networks where it takes a few; minutes
	$(BIN)/python -m pytest -q -m long tests

fuzz: $(INSTALLED) ## hold 1,200 random networks to their listed paths, in minutes (10,000 in an hour or two); FUZZ_NETWORKS=… FUZZ_SEED=… for others
	FUZZ_NETWORKS=$(FUZZ_NETWORKS) FUZZ_SEED=$(FUZZ_SEED) $(BIN)/python -m pytest -q -s tests/test_fuzz/test_networks.py

mutants: $(INSTALLED) ## break one line of pathjax at a time and see whether the tests notice; an hour
	$(BIN)/python tests/mutants.py

chaos: $(INSTALLED) ## kill a small study 100 times, fill its disk, forbid its folder, and see that no result is lost; half an hour to an hour
	$(BIN)/python tests/chaos.py

lint: $(INSTALLED) ## ruff: rules and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(INSTALLED) ## mypy, strict on pathjax/
	$(BIN)/mypy

bench: $(INSTALLED) ## what everything costs beside its peers, as a table and as docs/benchmarks; an hour, on an idle machine
	$(BIN)/python -m experiments.benchmarks

bench-long: $(INSTALLED) ## the same of what takes many minutes each, on ResNets
	$(BIN)/python -m experiments.benchmarks --long

docs: $(DOCS)/installed ## build the site into docs/_build/html, with every tutorial executed; minutes the first time, and less than one afterwards
	$(DOCS)/bin/python -m sphinx -W --keep-going -q -j 2 -b html docs docs/_build/html
	$(DOCS)/bin/python docs/_ext/broken_links.py docs/_build/html

docs-links: $(DOCS)/installed ## look whether the addresses outside of the site that its pages name can be reached
	$(DOCS)/bin/python -m sphinx -W --keep-going -q -b linkcheck docs docs/_build/linkcheck

clean: ## remove the environments and the caches, never the results under runs/
	rm -rf .venv $(NEWEST) $(DOCS) docs/_build build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(INSTALLED): requirements.txt
	$(call environment,.venv,$^)

$(DOCS)/installed: requirements.txt docs/requirements.txt
	$(call environment,$(DOCS),$^)

# makes the environment $(1) from the locks $(2)
define environment
	@if [ -L $(1) ]; then \
	    echo "$(1) is a link, and installing would empty what it points to. Remove the link, or run pip there yourself." >&2; \
	    exit 1; \
	fi
	@for python in $(PYTHON); do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    echo "Installing $(2) into $(1) with $$("$$python" --version); this takes some minutes, once."; \
	    exec "$$python" -m venv --clear $(1); \
	done; \
	echo "pathjax needs Python >= 3.11, and none of these is one: $(PYTHON). Name yours: make PYTHON=/path/to/python3" >&2; \
	exit 1
	@$(1)/bin/python -m pip install --quiet --no-input --disable-pip-version-check --progress-bar off \
	    --no-deps $(foreach lock,$(2),--requirement $(lock))
	@touch $@
endef

# from setup.cfg: what the library and the extras `test` and `infinite` require
REQUIRED := import configparser; cfg = configparser.ConfigParser(); cfg.read("setup.cfg"); \
    print(cfg["options"]["install_requires"], *map(cfg["options.extras_require"].get, ("test", "infinite")))

$(NEWEST)/installed: setup.cfg
	@if [ -L $(NEWEST) ]; then \
	    echo "$(NEWEST) is a link, and installing would empty what it points to. Remove the link." >&2; \
	    exit 1; \
	fi
	@python="$(NEWEST_PYTHON)"; \
	if ! "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then \
	    echo "The newest JAX needs Python >= 3.12, and none runs here. Name yours: make newest NEWEST_PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	fi; \
	echo "Installing the newest releases into $(NEWEST) with $$("$$python" --version); this takes a minute, once."; \
	"$$python" -m venv --clear $(NEWEST)
	@$(NEWEST)/bin/python -c '$(REQUIRED)' > $(NEWEST)/required.txt
	@grep -v neural-tangents $(NEWEST)/required.txt > $(NEWEST)/resolved.txt
	@grep neural-tangents $(NEWEST)/required.txt > $(NEWEST)/alone.txt
	@$(PIP_OF_NEWEST) --requirement $(NEWEST)/resolved.txt
	@# without what it names as dependencies, TensorFlow among them
	@$(PIP_OF_NEWEST) --no-deps --requirement $(NEWEST)/alone.txt
	@touch $@

PIP_OF_NEWEST = $(NEWEST)/bin/python -m pip install --quiet --no-input --disable-pip-version-check --progress-bar off
