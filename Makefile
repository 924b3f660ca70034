# Everything a newcomer needs: `make demo` sees it work, `make test` proves it. Needs Python 3.11 or newer, nothing else.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=
SECONDS ?= 600
WORKERS ?= 3
export npm_config_cache ?= $(CURDIR)/.cache/npm

.PHONY: demo up test lint format schemas docs transcripts faults constraints clean

demo: $(READY)
	@$(BIN)/serverchange demo $(ARGS)

up: $(READY)
	@$(BIN)/serverchange up $(ARGS)

test: lint
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schemas: $(READY)
	$(BIN)/serverchange schemas write
	$(BIN)/python tests/peers/asyncapi/check.py

docs: $(READY)
	$(BIN)/serverchange docs write

transcripts: $(READY)
	$(BIN)/serverchange docs record

faults: $(READY)
	$(BIN)/python -m tests.faults --seconds $(SECONDS)

# What `pip freeze` says after an unconstrained install of all extras: names and versions, no addresses.
constraints: $(READY)
	$(BIN)/python -m pip freeze --exclude-editable --exclude serverchange > constraints.txt

$(READY): pyproject.toml constraints.txt scripts/find-python
	@python=$$(PYTHON='$(PYTHON)' sh scripts/find-python) && echo "setting up $(VENV) with $$python" \
	  && { test -x $(BIN)/python || $$python -m venv $(VENV); }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --editable '.[services,tracing,embedded,dev]'
	@touch $@

clean:
	rm -rf $(VENV) .cache .serverchange .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
