VENV ?= .venv
PYTHON ?= python3
FOLDERS = $(wildcard Classification DDPM SD)
override FOLDERS := $(patsubst %/,%,$(FOLDERS))
$(if $(filter-out Classification DDPM SD,$(FOLDERS)),$(error FOLDERS must be some of Classification, DDPM and SD))
$(if $(strip $(FOLDERS)),,$(error FOLDERS is empty))
# The same text in every folder, so that each folder can be copied away alone
SAME = cli.py files.py run_folder.py masking.py table.py tests/fake_cuda.py tests/test_fake_cuda.py scripts/common.sh scripts/further_flags.py
JOBS ?= 2
# Folders are tested side by side, the longest first. Where make can, it prints a folder's report in one piece when that folder is done.
TESTS = echo "testing $(FOLDERS), $(JOBS) at a time"; $(MAKE) --no-print-directory --keep-going --jobs=$(JOBS) \
  $(if $(filter output-sync,$(.FEATURES)),--output-sync=target) $(addprefix pytest-,$(filter $(FOLDERS),SD DDPM Classification))

.DEFAULT_GOAL = help
.PHONY: help quickstart test test-fast scripts check lint

help:  ## print this list
	@echo "make TARGET [FOLDERS=SD], the first one also makes a virtual environment in $(VENV)"
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r name text; do printf '  %-11s %s\n' "$$name" "$$text"; done

$(VENV)/.installed: requirements.txt
	@echo "Installing requirements.txt into $(VENV): about 3 GB to download with PyTorch's default CUDA build on Linux"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: Python 3.10 or newer is needed: make PYTHON=python3.12 ...")'
	$(VENV)/bin/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

quickstart: $(VENV)/.installed  ## train, unlearn and compare on small real data: tables, plots and pictures
	@set -e; for folder in $(FOLDERS); do echo "== $$folder"; PATH="$(abspath $(VENV))/bin:$$PATH" bash $$folder/scripts/quickstart.sh; done

test: $(VENV)/.installed check  ## all tests, eight to fifteen minutes on two CPU cores
	+@$(TESTS)

test-fast: $(VENV)/.installed check  ## the tests that are not marked slow, about a minute and a half
	+@$(TESTS) SELECT='-m "not slow"'

scripts: $(VENV)/.installed  ## every shell script to its end, shrunk to a few random images, under 25 minutes on two CPU cores
	$(VENV)/bin/python .ci/scripts.py --folders $(FOLDERS) --jobs $(JOBS)

pytest-%:
	@echo "== $*"; $(VENV)/bin/python -m pytest $*/tests $(SELECT)

check:  ## files that must carry the same text in every folder do
	@for file in $(SAME); do for folder in $(FOLDERS); do \
	  cmp $(firstword $(wildcard Classification DDPM SD))/$$file $$folder/$$file || { echo "error: $$file must carry the same text in every folder" >&2; exit 1; }; done; done

lint: $(VENV)/.installed  ## ruff: style and format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
