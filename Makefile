# Two commands do everything: `make app` opens the page, `make test` runs the suite. Both set up what they need first.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# One file a worker and one BLAS thread each: on two cores, more threads would only wait for one another. Files in their own order:
# by the number of their tests, those of the browser, few and slow, would come last, and one worker would wait for the other.
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

export HF_HUB_DISABLE_TELEMETRY := 1
export STREAMLIT_BROWSER_GATHER_USAGE_STATS := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help app demo env test test-all coverage lint format smoke docs bench clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

app: env  ## set up, fetch the sample model, open the page on localhost
	$(BIN)/loraxs app

demo: env  ## the main job without a browser: report.html, layers.csv, plan.json, trials.csv
	$(BIN)/loraxs demo

env: $(VENV)/.runtime  ## the environment alone

test: $(VENV)/.dev  ## set up what the tests need, then the whole suite
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.dev  ## the suite with its slow checks
	$(PYTEST)

coverage: $(VENV)/.dev  ## the suite, and which lines it runs; slower, as every line is counted
	$(PYTEST) -m "not slow" --cov --cov-report=term:skip-covered

lint: $(VENV)/.dev  ## linter, formatter and types, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

smoke: $(VENV)/.dev  ## the wheel, built and tried in a clean environment and folder
	$(BIN)/python .ci/smoke.py

docs: $(VENV)/.dev  ## the documents as a site in build/site
	$(BIN)/mkdocs build --quiet --strict

format: $(VENV)/.dev  ## mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev  ## the figures the README quotes
	$(BIN)/python -m benchmarks

clean:  ## remove the environment (downloads, spectra and runs stay in the user's folders)
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is %s" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	$(BIN)/python -m sample_models fetch minilm
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	$(BIN)/python -m tests.browser.install
	@touch $@
