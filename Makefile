# Each target does all of its own set-up: a virtual environment in .venv, installed once.

PYTHON ?= python3.11
VENV := .venv
VENV2 := .venv-paddleocr2
VENV_FORK := .venv-fork
INSTALLED := $(VENV)/.installed-$(shell cat setup.py Makefile | cksum | cut -d ' ' -f 1)
ENVIRONMENT := PYTHONPATH=. TOKENIZERS_PARALLELISM=false ORT_DISABLE_TELEMETRY=1 NO_MKDOCS_2_WARNING=1
RUN := $(ENVIRONMENT) $(VENV)/bin/python
RUN2 := $(ENVIRONMENT) $(VENV2)/bin/python
RUN_FORK := $(ENVIRONMENT) $(VENV_FORK)/bin/python
FORK_PINS := tests/fork/pins.txt
TEST_PROCESSES ?= 2

.PHONY: demo test test-paddleocr2 test-fork docs lint clean

demo: $(INSTALLED)  ## train on the embedded tiny model: about 15 minutes on two cores
	$(RUN) scripts/demo.py

test: $(INSTALLED)  ## lint, then every test, in TEST_PROCESSES (2) processes of one thread
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(TEST_PROCESSES) --dist loadfile

test-paddleocr2: $(VENV2)/.installed  ## the OCR engines' tests under PaddleOCR 2.10, in an environment of its own
	$(RUN2) -m pytest tests/text_maps/test_engine.py tests/text_maps/test_paddle.py tests/text_maps/test_drawn_text.py

docs: $(INSTALLED)  ## the documentation as a site: site/, warnings are errors
	$(RUN) -m mkdocs build --strict --quiet

test-fork: $(VENV_FORK)/.installed  ## the plug-in among Flow-GRPO's pins, in an environment of its own: wants python3.10
	$(RUN_FORK) -m pytest tests/test_forks_page.py

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

# 2.10 brings all three names of OpenCV, and imports Paddle whatever computes the models.
$(VENV2)/.installed: setup.py Makefile
	$(PYTHON) -m venv $(VENV2)
	$(VENV2)/bin/pip install --quiet --upgrade pip
	$(VENV2)/bin/pip install --quiet "torch==2.13.0"
	$(VENV2)/bin/pip install --quiet --editable ".[paddleocr]" "paddleocr==2.10.0" "paddlepaddle==3.2.2" \
		"opencv-python==4.10.0.84" pytest pytest-timeout matplotlib
	touch $@

# As a fork's owner does it: the fork first, then the plug-in. The constraint makes pip refuse where the two cannot meet.
$(VENV_FORK)/.installed: setup.py Makefile $(FORK_PINS)
	python3.10 -m venv $(VENV_FORK)
	$(VENV_FORK)/bin/pip install --quiet --upgrade pip
	$(VENV_FORK)/bin/pip install --quiet --requirement $(FORK_PINS)
	$(VENV_FORK)/bin/pip install --quiet --constraint $(FORK_PINS) ".[ocr,clip]"
	$(VENV_FORK)/bin/pip install --quiet --constraint $(FORK_PINS) pytest pytest-timeout "setuptools>=70.1"
	touch $@

clean:
	rm -rf $(VENV) $(VENV2) $(VENV_FORK) build dist site *.egg-info
