# make search   set up, then the first search on the bundled sample (about two minutes on two cores)
# make test     set up, then the whole test suite
# make test-full  the long forms: kills at thirty moments, two hundred trials (about a quarter of an hour)
# make lab      JupyterLab on the notebooks
# make simulate  what the scores and comparisons are worth, with known truth
# make bench    what a trial and a study cost, against other ways (QUICK=1: in short; WRITE=1: also to tests/benchmarks/results/)
# make docs     the documentation as pages, in docs/_build
# make lint     ruff, format check, mypy
# make notebooks  run all notebooks again and store them with their outputs

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: search test test-full lab lint docs notebooks simulate bench clean
.DEFAULT_GOAL := search

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "evbind needs Python 3.11 or newer: make PYTHON=python3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

search: $(STAMP)
	$(BIN)/evbind hpo_search hpo=quick

test: $(STAMP)
# Three files at a time, since tests of servers and kills wait, the longest first. What is imported is compiled once, also where the
# environment forbids to keep it: tests start hundreds of processes.
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 3

test-full: $(STAMP)
	$(BIN)/python -m pytest -m full --numprocesses 2 --dist load

lab: $(STAMP)
	$(BIN)/jupyter lab --notebook-dir . --LabApp.default_url=/lab/tree/notebooks

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build
	@echo docs/_build/index.html

notebooks: $(STAMP)
	$(BIN)/python -m tests.store_notebooks

simulate: $(STAMP)
	$(BIN)/python -m tests.benchmarks.selection

BENCH_OPTIONS := $(if $(QUICK),--quick) $(if $(WRITE),--write)
bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks.speed $(BENCH_OPTIONS)
	$(BIN)/python -m tests.benchmarks.study $(BENCH_OPTIONS)

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache
