# `make` alone lists what there is. Everything runs in .venv, which is made on first use.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
SNR ?= 10
PROMPT ?=
SEED ?=
USERS ?= 8
DURATION ?= 60s
SHAPE ?= steady
URL ?= http://127.0.0.1:8080
REPORT ?= loadtest-out
FAULTS ?=

.DEFAULT_GOAL := help
.PHONY: help install constraints world-assets up demo test test-slow test-compose test-faults test-fuzz test-browser lint audit format \
  proto docs docs-serve down clean results results-quick bench loadtest loadtest-compose

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/.installed ## make .venv and install the project with its pinned dependencies

.venv/.installed: pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with 'make PYTHON=...'" >&2; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install ## one image per delivery over the whole chain: make demo SNR=10 PROMPT="..." SEED=7
	@$(BIN)/dekag demo --snr-db "$(SNR)" $(if $(PROMPT),--prompt "$(PROMPT)") $(if $(SEED),--seed "$(SEED)")

world-assets: install ## download the artwork of the embedded world (for training and evaluation; needs npm)
	@$(BIN)/python -m dekag.stickers fetch

up: install ## start Redis, the five services and a distiller until Ctrl-C
	@$(BIN)/dekag up

LOCUST = $(BIN)/locust -f loadtest/locustfile.py --headless --only-summary --exit-code-on-error 0 \
  --users "$(USERS)" --run-time "$(DURATION)" --shape "$(SHAPE)" --report "$(REPORT)"

loadtest: install ## ask what `make up` started as many users would: make loadtest USERS=8 DURATION=60s SHAPE=burst
	@$(LOCUST) --host "$(URL)" --logs .run

# A stack that runs is used as it is; one that does not is up for this run only. Locust takes the engine from
# DOCKER_HOST, since docker's SDK does not know its contexts.
loadtest-compose: install ## the same with docker-compose.yml, and what its containers' network counters say
	@if test -z "$$(docker compose ps --quiet --status running)"; then \
	  trap 'docker compose down' EXIT; trap 'exit 130' INT TERM; \
	  docker compose up --build --wait --wait-timeout 600; \
	fi && \
	host="$${DOCKER_HOST:-$$(docker context inspect --format '{{.Endpoints.docker.Host}}')}" && \
	address="$$(docker compose port gateway 8080)" && \
	project="$$(docker compose ps --format '{{.Project}}' gateway)" && \
	DOCKER_HOST="$$host" $(LOCUST) --host "http://$$address" --compose-project "$$project"

test: install ## the quick tests
	$(BIN)/python -m pytest --timeout 300 -m "not slow and not compose and not browser and not faults and not fuzz"

test-slow: install ## the tests that take longer
	$(BIN)/python -m pytest -m slow

test-compose: install ## build and check docker-compose.yml on a real engine
	$(BIN)/python -m pytest -m compose

test-faults: install ## break docker-compose.yml under load, one thing at a time and in pairs: make test-faults FAULTS=redis
	FAULTS="$(FAULTS)" $(BIN)/python -m pytest -m faults -v --capture=no

test-fuzz: install ## thousands of hostile inputs; writes results/trust/fuzz.json
	$(BIN)/python -m pytest -m fuzz tests/fuzz --record

test-browser: install ## the web page in headless Chromium (Debian's package chromium)
	$(BIN)/python -m pytest -m browser

# Hashes of models and results are no secrets, nor are the words that tests use as such.
FIND_SECRETS = git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --no-verify \
  --exclude-files '^(models|results)/|^tests/loadtest/recorded\.json$$|\.png$$' \
  --exclude-secrets '^(admin|health|unused|dekag_wrong)$$'

lint: install ## ruff, mypy --strict, whether the generated stubs match proto/, and no secrets
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/generate_proto.py --check
	$(FIND_SECRETS)

audit: install ## whether a pinned dependency has a known vulnerability; asks a service on the internet
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip --progress-spinner off

format: install ## let ruff format and fix what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: install ## regenerate services/proto from proto/
	$(BIN)/python scripts/generate_proto.py

# without --quiet, which takes warnings away from --strict too
docs: install ## build the book from docs/ into site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: install ## show the book on 127.0.0.1:8000 and follow changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8000

results-quick: install ## figures of the shipped models in minutes, beside the committed ones; resumes
	@$(BIN)/dekag results quick

results: install ## measure everything anew and rewrite results/ and the pages in docs/; resumes, takes hours
	$(BIN)/dekag experiment first-image
	$(BIN)/dekag experiment gka
	$(BIN)/dekag experiment tka
	$(BIN)/dekag experiment digital
	$(BIN)/dekag experiment overall
	$(MAKE) bench
	$(BIN)/dekag results quick --record
	$(BIN)/dekag results book

bench: install ## how fast the services are, as ratios inside one run: results/load/, docs/results-load.md
	$(BIN)/dekag bench parts
	$(BIN)/dekag bench chain
	$(BIN)/dekag bench throughput
	$(BIN)/dekag bench cached
	$(BIN)/dekag bench channel
	$(BIN)/dekag bench start
	$(BIN)/dekag bench overload
	$(BIN)/dekag bench cost
	$(BIN)/dekag bench sweep
	$(BIN)/dekag bench distill

constraints: install ## pin what .venv holds now
	$(BIN)/python -m pip freeze --disable-pip-version-check --exclude-editable --exclude dekag | \
	  sed -nE 's/^([A-Za-z0-9._-]+==[^+ ]+)(\+.*)?$$/\1/p' | LC_ALL=C sort -f > constraints.txt.new
	@mv constraints.txt.new constraints.txt && touch .venv/.installed

down: ## remove the containers of docker-compose.yml and their volumes
	docker compose down --volumes --remove-orphans

clean: ## remove what building, testing and running left
	rm -rf .run demo-out loadtest-out build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
