# make quickstart   a virtual environment, the main jobs on small real data, tables and plots
# make test         the tests of every folder, and that shared files are the same everywhere
VENV ?= .venv
PYTHON ?= python3
FOLDERS = $(wildcard Classification DDPM SD)

.PHONY: quickstart test check lint

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

quickstart: $(VENV)/.installed
	@set -e; for folder in $(FOLDERS); do echo "== $$folder"; PATH="$(abspath $(VENV))/bin:$$PATH" bash $$folder/scripts/quickstart.sh; done

test: $(VENV)/.installed check
	@set -e; for folder in $(FOLDERS); do echo "== $$folder"; $(VENV)/bin/python -m pytest $$folder/tests; done

check:
	@for file in masking.py run.py; do for folder in $(FOLDERS); do \
	  cmp Classification/$$file $$folder/$$file || { echo "error: $$file must carry the same text in every folder" >&2; exit 1; }; done; done

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
