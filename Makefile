VENV := .venv
BIN := $(VENV)/bin
SKIPPED := .pytest_cache/skipped
PYTHON ?= python3

.PHONY: help setup demo check test test-alone test-together bare faults attack edge flower long fuzz bench docs clean

help:
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.ready ## a virtual environment with pinned dependencies

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "boli needs Python 3.11 or newer"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	sh install_torch.sh $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup ## three sites on this machine train one adapter; no server, no download of data
	$(BIN)/boli demo

check: setup $(VENV)-imports/.ready ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=src $(VENV)-imports/bin/lint-imports

# import-linter pins rich, so it lives in an environment of its own.
$(VENV)-imports/.ready: constraints.txt
	$(PYTHON) -m venv $(VENV)-imports
	$(VENV)-imports/bin/python -m pip install --quiet --constraint constraints.txt import-linter
	@touch $@

test: setup ## every test but the long ones; make -j2 test runs two halves at once
	@rm -rf $(SKIPPED)
	@$(MAKE) --keep-going test-alone test-together; failed=$$?; \
	$(BIN)/python tests/skipped.py $(SKIPPED) && exit $$failed

test-alone: setup # what one process does, and plans from end to end
	$(BIN)/python -m pytest --skipped $(SKIPPED)/alone.json \
		--ignore tests/contracts --ignore tests/faults --ignore tests/attacks

test-together: setup # engines, and what goes wrong between processes
	$(BIN)/python -m pytest --skipped $(SKIPPED)/together.json tests/contracts tests/faults tests/attacks

bare: ## make demo and make test in a bare Debian; needs root, debootstrap and a network, an hour
	$(PYTHON) tests/bare/run.py

faults: setup ## 1,000 seeded kills of coordinator and sites, and 200 power cuts
	$(BIN)/python -m pytest -m slow tests/faults --ignore tests/faults/test_edge.py

attack: setup ## every attack on the promises, against the real commands; some minutes
	$(BIN)/python tests/attacks/run.py

edge: setup ## runs over thin, broken lines, in network namespaces; needs root, 30 minutes
	$(BIN)/python -m pytest -m 'slow or not slow' --timeout 1200 tests/faults/test_edge.py

flower: setup ## the engines' contract and faults inside a real Flower federation; half an hour
	$(BIN)/python -m pytest -m slow -k flower tests/contracts tests/faults

long: setup ## other plans from end to end, more lies, all starter text; some minutes
	$(BIN)/python -m pytest -m slow -k 'not flower' --ignore tests/faults

fuzz: setup ## 1,000,000 mutations of frames, payloads and facts
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	$(BIN)/python tests/faults/fuzz_frames.py

bench: setup ## every published number; hours
	$(BIN)/python benchmarks/local_steps.py
	$(BIN)/python benchmarks/federated_vs_central.py
	$(BIN)/python benchmarks/codec_speed.py
	$(BIN)/python benchmarks/hostile.py
	$(BIN)/python benchmarks/prepare_hostile.py --out benchmarks/results/prepare_hostile.json
	$(BIN)/python benchmarks/thin_wire.py
	$(BIN)/python benchmarks/dgc.py
	$(BIN)/python benchmarks/language.py ../shared/data
	$(BIN)/python benchmarks/fidelity.py ../shared/data
	$(BIN)/python benchmarks/keystrokes.py ../shared/data
	$(BIN)/python benchmarks/personal_data.py
	$(BIN)/python benchmarks/speech.py ../shared/data
	$(BIN)/python benchmarks/dirty_text.py ../shared/data
	$(BIN)/python benchmarks/near_duplicates.py ../shared/data
	$(BIN)/python benchmarks/prepare.py ../shared/data
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/tokenizer.py --steps 350 --hidden 64 --layers 2

docs: setup ## the help of every command, for docs/reference/commands.md
	$(BIN)/python docs/write_commands.py

clean: ## remove environments and caches; runs stay
	rm -rf $(VENV) $(VENV)-imports .mypy_cache .ruff_cache .pytest_cache .hypothesis
