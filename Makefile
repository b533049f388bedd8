# make            what can be made
# make book       everything: units -> results -> notebooks -> book
PROFILE  ?= auto
CHAPTERS ?=
BIN      := .venv/bin
RUN      := $(BIN)/python -m
BUILD     = $(RUN) book.pipeline.build --profile $(PROFILE) --chapters "$(CHAPTERS)" $(if $(SLURM),--slurm)

export PYTHONWARNINGS ?= ignore::FutureWarning

.DEFAULT_GOAL := help
.PHONY: help env book plan results mevf smoke lab test check pairs lint bench clean

help:  ## this list
	@echo 'make TARGET [PROFILE=auto|cpu|gpu] [CHAPTERS="01 03"] [SLURM=1]'
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

env:  ## .venv from the lock file (every target does this first; nothing to do when it is there)
	@command -v python3 > /dev/null || { echo 'missing: python3. Debian, Ubuntu: apt-get install python3 python3-venv'; exit 1; }
	@python3 book/pipeline/environment.py

book: env  ## run what is missing or changed, and build the book into build/site/_build/html
	@$(BUILD)

plan: env  ## what `make book` would run, and how long it took last time
	@$(BUILD) --plan

results: env  ## the experiments alone, without notebooks and book (a GPU server's part)
	@$(BUILD) --results

# What frozen encoders are worth is a question of the book's; the reproduction itself fine-tunes all of it.
MEVF_UNITS := $(if $(FROZEN),,--unit "???.3064,???.1797")

mevf: env  ## MEVF on VQA-RAD, as published and without the leak (two models, three seeds; over an hour); FROZEN=1 adds runs with frozen encoders
	@$(RUN) vqa_core.experiments.archive restore mevf --profile $(PROFILE)
	@OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=268435456 \
	  $(RUN) vqa_core run mevf --profile $(PROFILE) $(MEVF_UNITS)
	@$(RUN) vqa_core.experiments.archive keep mevf --profile $(PROFILE)

smoke: env  ## every notebook in seconds, the book from it, and a browser's look at it (build/smoke)
	@$(RUN) book.pipeline.build --profile smoke --chapters "$(CHAPTERS)"
	@BOOK_HTML=$(CURDIR)/build/smoke/site/_build/html $(RUN) pytest -q -m browser tests/site

lab: env  ## JupyterLab on the notebooks
	@$(RUN) jupyterlab notebooks

test: env  ## tests, on all cores; the browser's too where a site is built and chromium and node are there
	@OMP_NUM_THREADS=1 $(RUN) pytest -q -n auto

check: env  ## name every figure, pair or number that is out of date; fails if there is one
	@$(RUN) book.pipeline.check

pairs: env  ## write notebooks/*.ipynb from notebooks/*.py
	@$(RUN) book.pipeline.prepare

lint: env  ## ruff, measured numbers typed into prose, long cells
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --check --quiet . && $(RUN) book.pipeline.lint

bench: env  ## benchmarks
	@$(RUN) pytest -q tests/benchmarks --benchmark-enable --benchmark-only

clean:  ## remove build/ (results/ stays: it is what took long)
	rm -rf build .snakemake
