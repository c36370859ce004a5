# `make` alone lists what there is. Everything runs in .venv, which is made on first use with the first supported
# Python that is found, or with `make PYTHON=...`; each target installs what it needs that is not there yet.
PYTHON ?=
BIN := .venv/bin
INSTALL = python="$$(sh scripts/find_python.sh "$(PYTHON)")" && "$$python" scripts/install.py
# a variable that is empty is as good as none
override SNR := $(if $(strip $(SNR)),$(SNR),10)
PROMPT ?=
SEED ?=
override USERS := $(if $(strip $(USERS)),$(USERS),8)
override DURATION := $(if $(strip $(DURATION)),$(DURATION),60s)
override SHAPE := $(if $(strip $(SHAPE)),$(SHAPE),steady)
override URL := $(if $(strip $(URL)),$(URL),http://127.0.0.1:8080)
override REPORT := $(if $(strip $(REPORT)),$(REPORT),loadtest-out)
FAULTS ?=

.DEFAULT_GOAL := help
.PHONY: help install constraints world-assets up demo test test-slow test-install test-compose test-faults test-fuzz \
  test-browser lint audit format proto docs docs-serve down clean results results-quick bench loadtest loadtest-compose \
  install-times FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: need-dev ## make .venv and install everything that any target needs

# Not a file: whether .venv is whole is looked at each time.
need-%: FORCE
	@$(INSTALL) $*

FORCE:

demo: need-run ## one image per delivery over the whole chain: make demo SNR=10 PROMPT="..." SEED=7
	@$(BIN)/dekag demo --snr-db "$(SNR)" $(if $(strip $(PROMPT)),--prompt "$(PROMPT)") $(if $(strip $(SEED)),--seed "$(SEED)")

world-assets: need-run ## download the artwork of the embedded world (for training and evaluation; needs npm)
	@$(BIN)/python -m dekag.stickers fetch

up: need-run ## start Redis, the five services and a distiller until Ctrl-C
	@$(BIN)/dekag up

LOCUST = $(BIN)/locust -f services/bench/loadtest/locustfile.py --headless --only-summary --exit-code-on-error 0 \
  --users "$(USERS)" --run-time "$(DURATION)" --shape "$(SHAPE)" --report "$(REPORT)"

loadtest: need-loadtest ## ask what `make up` started as many users would: make loadtest USERS=8 DURATION=60s SHAPE=burst
	@$(LOCUST) --host "$(URL)" --logs .run

# A stack that runs is used as it is; one that does not is up for this run only. Locust takes the engine from
# DOCKER_HOST, since docker's SDK does not know its contexts.
loadtest-compose: need-loadtest ## the same with docker-compose.yml, and what its containers' network counters say
	@if test -z "$$(docker compose ps --quiet --status running)"; then \
	  trap 'docker compose down' EXIT; trap 'exit 130' INT TERM; \
	  docker compose up --build --wait --wait-timeout 600; \
	fi && \
	host="$${DOCKER_HOST:-$$(docker context inspect --format '{{.Endpoints.docker.Host}}')}" && \
	address="$$(docker compose port gateway 8080 | sed 's/^0\.0\.0\.0:/127.0.0.1:/; s/^\[::\]:/[::1]:/')" && \
	project="$$(docker compose ps --format '{{.Project}}' gateway)" && \
	inside() { docker compose exec -T gateway "$$@" 2>/dev/null || true; } && \
	scheme=http && https="$$(inside printenv DEKAG_HTTPS_DIR)" && \
	if test -n "$$https"; then \
	  scheme=https; authority="$$(inside cat "$$https/ca.crt")"; \
	  if test -z "$$DEKAG_CA_FILE" && test -n "$$authority"; then \
	    mkdir -p "$(REPORT)" && export DEKAG_CA_FILE="$(REPORT)/ca.crt" && echo "$$authority" > "$$DEKAG_CA_FILE"; \
	  fi; \
	fi && \
	if test -n "$$(inside printenv DEKAG_API_KEYS_FILE)" && test -z "$$DEKAG_API_KEY"; then \
	  echo "this stack asks for an API key: set DEKAG_API_KEY (docs/security.md says how to make one)" >&2; exit 2; \
	fi && \
	DOCKER_HOST="$$host" $(LOCUST) --host "$$scheme://$$address" --compose-project "$$project"

test: need-test ## the quick tests
	$(BIN)/python -m pytest --timeout 300 -m "not slow and not compose and not browser and not faults and not fuzz and not install"

test-slow: need-test ## the tests that take longer
	$(BIN)/python -m pytest -m slow

test-install: need-test ## the wheel in an empty folder, and whether the pins hold on every Python that is here
	$(BIN)/python -m pytest -m install

test-compose: need-test ## build and check docker-compose.yml on a real engine
	$(BIN)/python -m pytest -m compose

test-faults: need-test ## break docker-compose.yml under load, one thing at a time and in pairs: make test-faults FAULTS=redis
	FAULTS="$(FAULTS)" $(BIN)/python -m pytest -m faults -v --capture=no

test-fuzz: need-fuzz ## thousands of hostile inputs; writes results/trust/fuzz.json
	$(BIN)/python -m pytest tests/hostile --hypothesis-profile=thorough --record

test-browser: need-browser ## the web page in headless Chromium (Debian's package chromium)
	$(BIN)/python -m pytest -m browser

# Hashes of models and results are no secrets, nor are the words that tests use as such.
FIND_SECRETS = git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --no-verify \
  --exclude-files '^(models|results)/|^tests/services/bench/loadtest/recorded\.json$$|^tests/evaluation/test_store\.py$$|\.png$$' \
  --exclude-secrets '^(admin|clients|health|unused|dekag_wrong|pass|pw|s3cret)$$'

lint: need-lint ## ruff, mypy --strict, which package may import which, whether stubs match proto/, and no secrets
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/generate_proto.py --check
	$(FIND_SECRETS)

audit: need-audit ## whether a pinned dependency has a known vulnerability; asks a service on the internet
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip --progress-spinner off

format: need-lint ## let ruff format and fix what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: need-proto ## regenerate services/proto from proto/
	$(BIN)/python scripts/generate_proto.py

# without --quiet, which takes warnings away from --strict too
docs: need-docs ## build the book from docs/ into site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: need-docs ## show the book on 127.0.0.1:8000 and follow changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8000

results-quick: need-eval ## figures of the shipped models in minutes, beside the committed ones; resumes
	@$(BIN)/dekag results quick

results: need-all ## measure everything anew and rewrite results/ and the pages in docs/; resumes, takes hours
	$(BIN)/dekag experiment first-image
	$(BIN)/dekag experiment gka
	$(BIN)/dekag experiment tka
	$(BIN)/dekag experiment digital
	$(BIN)/dekag experiment overall
	$(MAKE) bench
	$(BIN)/dekag results quick --record
	$(BIN)/dekag results book

bench: need-all ## how fast the services are, as ratios inside one run: results/load/, docs/results-load.md
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

# With the oldest Python that is supported, since releases for it run on newer ones too. PyTorch pins CUDA's packages.
constraints: need-dev ## pin what .venv holds now
	$(BIN)/python -m pip freeze --disable-pip-version-check --exclude-editable --exclude dekag | grep -vE "^(nvidia|cuda|triton)" | \
	  sed -nE 's/^([A-Za-z0-9._-]+==[^+ ]+)(\+.*)?$$/\1/p' | LC_ALL=C sort -f > constraints.txt.new
	@mv constraints.txt.new constraints.txt

install-times: ## how long `make demo` takes from nothing: make install-times PYTHONS="python3.11 python3.12"
	@python="$$(sh scripts/find_python.sh "$(PYTHON)")" && \
	  "$$python" scripts/measure_install.py $(or $(PYTHONS),"$$python")

down: ## remove the containers of docker-compose.yml and their volumes
	docker compose down --volumes --remove-orphans

clean: ## remove what building, testing and running left
	rm -rf .run demo-out loadtest-out build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
