# Needs make, bash and Python 3.11 to 3.13, nothing else: every target sets up what it needs. Start with `make help`.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
# The tests start some hundred processes: each would compile the library anew.
unexport PYTHONDONTWRITEBYTECODE

EXTRAS := train,baselines,serve,ann,ray,dagster,notebooks,dev,fuzz,docs
BIN := .venv/bin
INSTALLED := .venv/.installed
PORT ?= 3000
# Those in notebooks/rendered are committed: `make run notebooks NOTEBOOKS_TO=notebooks/rendered`.
NOTEBOOKS_TO ?= notebooks
SERVE_PORT ?= 8080
WORKERS ?= 1
# The namespace whose models are served: that of `make run` with the same RECIPE or NAMESPACE.
SERVED = $(or $(NAMESPACE),$(RECIPE),laptop)
STATES = warehouse/data/serving/$(SERVED)/user_states.parquet
# The tests are single-threaded, and wait for servers and processes: three keep two cores busy. 0 runs them in this one.
TEST_WORKERS ?= 3

FITTING_PYTHON := 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
RUN_OPTIONS = $(strip $(if $(RECIPE),--recipe '$(RECIPE)') $(if $(LOGS),--logs '$(LOGS)') \
	$(if $(PRESET),--preset '$(PRESET)') $(if $(MAPPING),--mapping '$(MAPPING)') \
	$(if $(NAMESPACE),--namespace '$(NAMESPACE)') $(if $(STRICT),--strict) \
	$(if $(MAX_REJECTS),--max-rejects '$(MAX_REJECTS)') $(if $(TAKE_OVER),--take-over))

# Where what goes by bucket runs, as in `make run ENGINE=processes:4` (docs/scale.md); the same bits on each.
ifdef ENGINE
export REQDEDUP_ENGINE := $(ENGINE)
endif

# Dagster keeps its run history here; without it every command forgets the one before.
export DAGSTER_HOME := $(CURDIR)/.dagster
ACTIVATED := VIRTUAL_ENV="$(CURDIR)/.venv" PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: help setup run ray serve ui docs test test-fast soak check check-next format notebooks study bench-storage bench-training bench-serving bench-gpu clean distclean

help: ## list the targets
	@echo "reqdedup: request-level data stored, moved and computed once per request"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  make run RECIPE=smoke                        a smaller or larger graph: smoke, laptop (default), full,"
	@echo "                                               or events: from a stream of events to models"
	@echo "  make run LOGS=ml-100k PRESET=movielens          your own log: movielens, mind, kuairand, ..."
	@echo "  make run LOGS=log.parquet MAPPING=columns.toml  your own log, its columns named by a mapping"
	@echo "                                               (STRICT=1: a rejected row fails the run;"
	@echo "                                               MAX_REJECTS=0.5: half of them do; NAMESPACE=name: where to;"
	@echo "                                               TAKE_OVER=1: from a run that died on another machine)"
	@echo "  make run ENGINE=processes:4                  by so many processes, where it goes by bucket (docs/scale.md)"
	@echo "  make study MOVIELENS=ml-100k                 with a section on MovieLens 100K, its folder given"
	@echo "  make ui PORT=3001                            another port"
	@echo "  export DAGSTER_HOME=$(DAGSTER_HOME); $(BIN)/dg launch --assets '*'"
	@echo "                                               the same graph from Dagster's command line, or a selection of it"

setup: $(INSTALLED) .dagster/dagster.yaml ## make .venv with the pinned dependencies (a second call is instant)

run: setup ## materialize the whole asset graph and print a summary
	@$(ACTIVATED) python -m pipelines.run $(RUN_OPTIONS)

ray: setup ## the same by a Ray cluster of two nodes, which root can make where nobody else reaches it
	@$(ACTIVATED) python -m pipelines.ray_cluster python -m pipelines.run $(RUN_OPTIONS)

serve: setup ## answer over HTTP with the models just trained, on 127.0.0.1:8080 (WORKERS=2, SERVE_PORT=8081)
	@test -e 'warehouse/data/serving/$(SERVED)/bundle' || { \
	  echo "serve: models of $(SERVED) required, found none in warehouse/data/serving; \`make run\` trains them," \
	    "and RECIPE or NAMESPACE is to be the same there and here" >&2; exit 2; }
	@$(ACTIVATED) reqdedup serve 'warehouse/data/serving/$(SERVED)/bundle' --store 'warehouse/data/stores/$(SERVED).sqlite' \
	  $(if $(wildcard $(STATES)),--user-states '$(STATES)') \
	  --impressions 'warehouse/data/impressions/$(SERVED)' --port $(SERVE_PORT) --workers $(WORKERS) --watch 5

ui: setup ## open the Dagster UI on 127.0.0.1:3000 with the same graph, and a log by days beside it
	@echo "ui: http://127.0.0.1:$(PORT) in some ten seconds; what was made is under Catalog; Ctrl-C ends it"
	@$(ACTIVATED) PYTHONWARNINGS=ignore dagster dev -w pipelines/workspace.yaml --host 127.0.0.1 --port $(PORT)

docs: setup ## the documentation as a site, into build/site/index.html; a broken link is an error
	@$(ACTIVATED) NO_MKDOCS_2_WARNING=1 mkdocs build --quiet
	@echo "docs: build/site/index.html"

# Side by side: mypy alone would leave a core idle for a minute. What it says comes last, where it is seen.
test: setup ## check and run the tests
	@said="$$(mktemp)"; trap 'rm -f "$$said"' EXIT; \
	  make --no-print-directory check >"$$said" 2>&1 & checking=$$!; failed=0; \
	  $(ACTIVATED) pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder --durations 10 || failed=$$?; \
	  wait $$checking || failed=$$?; cat "$$said"; exit $$failed

test-fast: setup ## the inner loop: no servers, no browser, nothing slow; under a minute
	@$(ACTIVATED) pytest -n $(TEST_WORKERS) --dist loadfile -m 'not (slow or soak or servers)'

soak: setup ## long kill and fuzz runs, at most 20 minutes on a quiet machine (SOAK_REQUESTS=10000: fewer of serving)
	@$(ACTIVATED) pytest -n $(TEST_WORKERS) --durations 10 -m soak || { code=$$?; [ $$code -eq 5 ] || exit $$code; }

check: setup ## lint, format, types and import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

check-next: setup ## do the tests pass with newer versions of pyiceberg, pyarrow, duckdb, polars, dagster, torch? (minutes each)
	@$(ACTIVATED) python -m tests.next_versions $(LIBRARIES)

format: setup ## format the code and fix what ruff can fix
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

notebooks: setup ## run the notebooks against the embedded warehouse, into notebooks/*.ipynb (or NOTEBOOKS_TO=folder)
	@case "$(abspath $(NOTEBOOKS_TO))/" in "$(CURDIR)/"*) ;; *) \
	  echo "notebooks: a folder of this repository required, where they look for the code, found NOTEBOOKS_TO=$(NOTEBOOKS_TO)" >&2; \
	  exit 2;; esac
	@mkdir -p $(NOTEBOOKS_TO)
	@for script in notebooks/*.py; do \
	  notebook="$(NOTEBOOKS_TO)/$$(basename "$${script%.py}").ipynb"; \
	  $(BIN)/jupytext --quiet --to ipynb --output "$$notebook" "$$script"; \
	  $(ACTIVATED) jupyter-execute --inplace "$$notebook"; \
	  echo "$$notebook"; \
	done

study: setup ## the library's models beside IID, every fix alone and together, 4 ranks, into docs/study.md
	@$(ACTIVATED) python -m benchmarks.study $(if $(MOVIELENS),--movielens '$(MOVIELENS)')

bench-storage: setup ## measure every claim about storage (45 minutes on 2 free cores), into benchmarks/results/storage_*.jsonl and urls.jsonl
	@$(ACTIVATED) python -m benchmarks.storage
	@$(ACTIVATED) python -m benchmarks.urls
	@$(ACTIVATED) python -m benchmarks.report --write
	@$(ACTIVATED) python -m benchmarks.picture --write

bench-training: setup ## measure every claim about training (15 minutes on 2 cores), into benchmarks/results/training*.jsonl
	@$(ACTIVATED) python -m benchmarks.training
	@$(ACTIVATED) python -m benchmarks.training_by_hand
	@$(ACTIVATED) python -m benchmarks.report --write

bench-serving: setup ## measure every claim about serving, into benchmarks/results/serving*.jsonl and rerank.jsonl
	@$(ACTIVATED) python -m benchmarks.serving
	@$(ACTIVATED) python -m benchmarks.serving_http
	@$(ACTIVATED) python -m benchmarks.serving_retrieval
	@$(ACTIVATED) OMP_NUM_THREADS=1 python -m benchmarks.rerank
	@$(ACTIVATED) python -m benchmarks.report --write

bench-gpu: setup ## crossing attention on an NVIDIA GPU beside the alternatives (exit code 2 without one)
	@$(ACTIVATED) python -m benchmarks.gpu_crossing

clean: ## remove caches and build output
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis notebooks/*.ipynb
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## remove .venv, Dagster's history and the tables under warehouse/data too
	@rm -rf .venv .dagster warehouse/data

.dagster/dagster.yaml: pipelines/dagster.yaml
	@mkdir -p .dagster && ln -sf ../pipelines/dagster.yaml $@

# The stamp is as old as the last complete installation, so an interrupted one is repeated.
$(INSTALLED): pyproject.toml constraints.txt
	@if ! { $(BIN)/python -c $(FITTING_PYTHON) && $(BIN)/python -m pip --version; } >/dev/null 2>&1; then \
	  rm -rf .venv; \
	  python=; \
	  for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	    if "$$candidate" -c $(FITTING_PYTHON) 2>/dev/null; then python=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "setup: Python 3.11, 3.12 or 3.13 with its venv module is required;" \
	      "found $$(python3 --version 2>/dev/null || echo 'no python3') without a fitting one beside it." >&2; \
	    echo "       Install one (Debian: apt-get install python3 python3-venv) or name it: make setup PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	  fi; \
	  echo "setup: .venv with $$("$$python" --version) ($$python)"; \
	  "$$python" -m venv .venv; \
	fi
	@echo "setup: installing the pinned dependencies, one to five minutes the first time"
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
	  -c constraints.txt -e '.[$(EXTRAS)]' 2>&1 | tee .venv/install.log | awk ' \
	    /^Collecting / { if (++collected % 20 == 0) { print "setup: " collected " packages collected"; fflush() } } \
	    /^Installing collected/ { print "setup: installing them"; fflush() } \
	    /^Successfully installed/ { print "setup: done" }' \
	  || { tail -n 15 .venv/install.log; echo "setup: pip failed; the whole log is .venv/install.log"; exit 1; } >&2
	@touch $@
