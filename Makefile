# Each target does all of its own set-up: a virtual environment in .venv, installed once.

PYTHON ?= python3.11
VENV := .venv
INSTALLED := $(VENV)/.installed-$(shell cat setup.py Makefile | cksum | cut -d ' ' -f 1)
RUN := PYTHONPATH=. TOKENIZERS_PARALLELISM=false ORT_DISABLE_TELEMETRY=1 $(VENV)/bin/python

.PHONY: demo test lint clean

demo: $(INSTALLED)  ## train on the embedded tiny model: about 15 minutes on two cores
	$(RUN) scripts/demo.py

test: $(INSTALLED)  ## lint, then every test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) -m pytest

lint: $(INSTALLED)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# torch first and by itself: the build that it picks (CPU or CUDA) is then left alone by everything that follows.
$(INSTALLED): setup.py Makefile
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade pip
	$(VENV)/bin/pip install --quiet "torch==2.13.0"
	$(VENV)/bin/pip install --quiet --editable ".[dev]"
	rm -f $(VENV)/.installed-*
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
