# Two commands do everything: `make demo` and `make test`. `make help` lists the others.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEEPLABZOO_DATA ?= $(wildcard ../shared/data)
export DEEPLABZOO_DATA

.DEFAULT_GOAL := help
FUZZ_RUNS ?= 10000
# Processes of the suite; each case starts workers of its own, so more than two want more memory than 16 GB.
JOBS ?= 2
# Of the GPU suite and its benchmark.
DEVICE ?= gpu

.PHONY: help setup demo test test-all test-gpu lint format benchmarks benchmarks-gpu benchmarks-graph presets clean goldens fuzz

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

# Everything a user needs, with the versions the suite is run with.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0] + "; set PYTHON=...") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV) || { echo "the venv module is missing; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "installing torch, paddlepaddle, tensorflow and the package into $(VENV), a few minutes the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[torch,paddle,keras,jax,onnx]'
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	@command -v c++ >/dev/null || { echo "the CRF library compiles from source and needs a C++ compiler; on Debian: apt-get install g++ python3-dev"; exit 1; }
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
		|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get install -y -qq chromium >/dev/null; } \
		|| echo "the report's page is tested in Chromium, those tests are skipped without; on Debian: apt-get install chromium"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[crf,test,dev]'
	@touch $@

setup: $(VENV)/installed-test ## Make .venv with everything, tests and tools included

demo: $(VENV)/installed ## Convert a public checkpoint, run every framework, draw and compare (pictures in demo-output)
	@$(BIN)/deeplabzoo demo --output demo-output

test: $(VENV)/installed-test ## Run the suite (JOBS processes)
	$(BIN)/python -m pytest -m "not slow and not gpu" -n $(JOBS) --dist loadfile

test-all: $(VENV)/installed-test ## Run the suite with the heavy cases
	$(BIN)/python -m pytest -m "not gpu" -n $(JOBS) --dist loadfile

test-gpu: ## Run the GPU suite with PYTHON as it is (it needs pytest and numpy); installs nothing; DEVICE=cpu proves the path
	DEEPLABZOO_TEST_DEVICE=$(DEVICE) PYTHONPATH=. $(PYTHON) -m pytest -c tests/gpu/pytest.ini --rootdir . -p no:cacheprovider tests/gpu

lint: $(VENV)/installed-test ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-test ## Bring the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmarks: $(VENV)/installed-test ## Measure conversion, inspection, start-up, ways to show a photo and a parity run; prints tables
	$(BIN)/python benchmarks/conversion.py
	$(BIN)/python benchmarks/inspection.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/parity.py

benchmarks-gpu: ## Measure errors and images a second on DEVICE with PYTHON as it is; installs nothing
	PYTHONPATH=. $(PYTHON) benchmarks/gpu.py --device $(DEVICE)

benchmarks-graph: $(VENV)/installed-test ## Compare conversion with the way through ONNX (three further environments)
	$(BIN)/python benchmarks/graph_route.py

presets: $(VENV)/installed-test ## Judge every preset in every backend; prints the table of docs/presets.md (an hour on two cores)
	$(BIN)/python benchmarks/presets.py

goldens: $(VENV)/installed-test ## Judge every public golden case in every backend; prints a table (ten minutes on two cores)
	$(BIN)/python benchmarks/goldens.py

fuzz: $(VENV)/installed-test ## Fuzz every reader of checkpoints (FUZZ_RUNS files each); prints a table
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	$(BIN)/python fuzz/fuzz_readers.py --runs $(FUZZ_RUNS)

clean: ## Remove what was made
	rm -rf $(VENV) demo-output build .graph-route *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis fuzz-findings
