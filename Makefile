# Two commands: `make bench` runs the main job, `make test` passes the tests. Each creates the
# environment that it needs (.venv) and may be run again at any time.
#
# Torch: the oracle needs no GPU, and PyPI's Linux build of torch pulls gigabytes of CUDA packages.
# So the CPU build comes first, from PyTorch's own index; where that index cannot be reached, from
# whatever index pip is configured for. On macOS and Windows PyPI's build is the CPU build anyway.
# On a GPU host: `make .venv/installed TORCH=torch TORCH_INDEX=` takes the CUDA build.

#
# A host without a network: `make WHEELS=folder EXTRAS=gpu,bench .venv/installed` installs from a
# folder of wheels alone (docs/gpu-host.md).

PYTHON ?= python3
WHEELS ?=
EXTRAS ?= dev
VENV ?=
TORCH ?= torch==2.13.0
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := .venv/bin
COMMIT = $$(git rev-parse HEAD)

.PHONY: bench test lint history clean from-network

.venv/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV) .venv
	if [ -n "$(WHEELS)" ]; then \
	  $(BIN)/python -m pip install --quiet --no-index --find-links "$(WHEELS)" hatchling editables \
	  && $(BIN)/python -m pip install --quiet --no-index --find-links "$(WHEELS)" \
	    --no-build-isolation --editable '.[$(EXTRAS)]'; \
	else $(MAKE) --no-print-directory from-network; fi
	touch $@

from-network:
	$(BIN)/python -m pip install --quiet --upgrade pip
	{ [ -n "$(TORCH_INDEX)" ] && PIP_EXTRA_INDEX_URL= $(BIN)/python -m pip install --quiet \
	    --retries 0 --timeout 10 --index-url "$(TORCH_INDEX)" "$(TORCH)" 2>/dev/null; } \
	  || $(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'

# asv's exit status is kept: a rejected guard fails the run, and the site is published all the same.
MACHINE = $$($(BIN)/moe-harness machine --name)
bench: .venv/installed
	status=0; \
	$(BIN)/asv run --machine "$(MACHINE)" --python=same --set-commit-hash $(COMMIT) \
	  --show-stderr || status=$$?; \
	$(BIN)/asv publish || exit $$?; \
	echo "site: $(CURDIR)/.asv/html/index.html"; \
	exit $$status

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The last N commits, each in a virtualenv of asv's own.
N ?= 3
history: .venv/installed
	$(BIN)/asv run --machine "$(MACHINE)" HEAD~$(N)..HEAD
	$(BIN)/asv publish

# One self-contained page of results/, and the pictures in docs/ (screenshots need a browser).
.PHONY: report pictures
report: .venv/installed
	$(BIN)/moe-harness report

pictures: .venv/installed
	PYTHONPATH=tests $(BIN)/python -m helpers.pictures docs/pictures

# Kills asv in the middle of a run, ten times (docs/history.md).
.PHONY: kills
kills: .venv/installed
	MOE_HARNESS_KILLS=10 $(BIN)/python -m pytest tests/history/test_saving.py

# On a GPU host: does asv see a planted 5 %, and nothing between equal commits (docs/history.md)?
EQUAL ?= 11
.PHONY: slowdown
slowdown: .venv/installed
	mkdir -p .asv
	PYTHONPATH=tests $(BIN)/python -m helpers.slowdown .asv/slowdown "$(MACHINE)" .asv/slowdown.json $(EQUAL)

clean:
	rm -rf .venv .asv

# On a GPU host: the kernels under compute-sanitizer, on the small models of the tests.
SANITIZED = test_every_numerics_is_accepted or test_odd_shapes or test_a_long_cache
.PHONY: sanitize
sanitize: .venv/installed
	for tool in memcheck racecheck initcheck; do \
	  MOE_HARNESS_ORACLE=cpu compute-sanitizer --tool $$tool --error-exitcode 1 --report-api-errors no --target-processes all \
	    $(BIN)/python -m pytest -q -m gpu tests/backends/test_cuda.py -k "$(SANITIZED)" || exit 1; \
	done
