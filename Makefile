# `make` lists the targets. Everything runs in .venv, which is created on first use with the first supported Python
# found, or with `make PYTHON=...`. Each target installs its missing dependencies.
PYTHON ?=
BIN := .venv/bin
INSTALL = python="$$(sh scripts/find_python.sh "$(PYTHON)")" && "$$python" scripts/install.py
# an empty variable counts as unset
SNR ?=
PROMPT ?=
SEED ?=
override USERS := $(if $(strip $(USERS)),$(USERS),8)
override DURATION := $(if $(strip $(DURATION)),$(DURATION),60s)
override SHAPE := $(if $(strip $(SHAPE)),$(SHAPE),steady)
override URL := $(if $(strip $(URL)),$(URL),http://127.0.0.1:8080)
override GENERATORS := $(if $(strip $(GENERATORS)),$(GENERATORS),1)
override MEASURE := $(if $(strip $(MEASURE)),$(MEASURE),yes)
override REPORT := $(if $(strip $(REPORT)),$(REPORT),loadtest-out)
FAULTS ?=
MINUTES ?=

.DEFAULT_GOAL := help
.PHONY: help install constraints world-assets up demo test test-clients notebooks test-slow test-install test-compose test-faults test-fuzz \
  test-pictures test-trust test-week test-browser lint audit format proto docs docs-serve down clean results results-quick bench loadtest loadtest-compose \
  install-times release FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: need-dev ## create .venv and install the dependencies of all targets

# Not a file: .venv is checked each time.
need-%: FORCE
	@$(INSTALL) $*

FORCE:

demo: need-run ## send one image per delivery mode and compare costs: make demo SNR=5 PROMPT="..." SEED=7
	@$(BIN)/dekag demo $(if $(strip $(SNR)),--snr-db "$(SNR)") $(if $(strip $(PROMPT)),--prompt "$(PROMPT)") $(if $(strip $(SEED)),--seed "$(SEED)")

world-assets: need-run ## download the artwork of the world (for training and evaluation; needs npm)
	@$(BIN)/python -m dekag.stickers fetch

up: need-run ## start Redis, the five services and a distiller; Ctrl-C stops them
	@$(BIN)/dekag up

LOCUST = $(BIN)/locust -f services/bench/loadtest/locustfile.py --headless --only-summary --exit-code-on-error 0 \
  --users "$(USERS)" --run-time "$(DURATION)" --shape "$(SHAPE)" --measure "$(MEASURE)" --report "$(REPORT)" \
  $(if $(filter-out 1,$(GENERATORS)),--processes "$(GENERATORS)")

loadtest: need-loadtest ## run a load test against a running system: make loadtest USERS=8 DURATION=60s SHAPE=burst GENERATORS=2 MEASURE=no
	@$(LOCUST) --host "$(URL)" --logs .run

# A running stack is used as it is; otherwise it is started for this run only. Locust takes the engine from
# DOCKER_HOST, because Docker's SDK does not support contexts.
loadtest-compose: need-loadtest ## the same with docker-compose.yml, including the containers' network counters
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
	  echo "this stack requires an API key: set DEKAG_API_KEY (see docs/security.md)" >&2; exit 2; \
	fi && \
	DOCKER_HOST="$$host" $(LOCUST) --host "$$scheme://$$address" --compose-project "$$project"

test: need-test ## run the quick tests
	$(BIN)/python -m pytest --timeout 300 -m "not slow and not compose and not browser and not faults and not fuzz and not install and not trust"

test-clients: need-clients ## test with LiteLLM, OpenAI's official clients (for JavaScript if npm is there), W&B and MLflow
	@if command -v npm > /dev/null; then npm --prefix tests/javascript install; \
	  else echo "npm is not installed: the tests of the JavaScript client are skipped"; fi
	$(BIN)/python -m pytest -rs tests/services/gateway/test_openai.py tests/training/test_log.py

notebooks: need-test ## run the notebooks in docs/notebooks and save their outputs
	$(BIN)/python scripts/notebooks.py

test-slow: need-test ## run the slow tests
	$(BIN)/python -m pytest -m slow

test-install: need-test ## test the wheel in an empty folder, and the pins on every installed Python
	$(BIN)/python -m pytest -m install

test-compose: need-test ## build and test docker-compose.yml; needs Docker Engine
	$(BIN)/python -m pytest -m compose

test-faults: need-test ## inject faults into docker-compose.yml under load: make test-faults FAULTS=redis
	FAULTS="$(FAULTS)" $(BIN)/python -m pytest -m faults -v --capture=no

test-fuzz: need-fuzz ## send thousands of hostile inputs; writes results/trust/fuzz.json
	$(BIN)/python -m pytest tests/hostile --hypothesis-profile=thorough --record

test-pictures: need-fuzz ## send the hostile pictures among them alone; writes results/trust/pictures.json
	$(BIN)/python -m pytest tests/hostile/test_pictures.py --hypothesis-profile=thorough --record

test-trust: need-fuzz ## attack a system of real processes, kill them, let a week pass; writes results/trust/ (Debian package haproxy)
	$(BIN)/python -m pytest tests/trust -m trust --record

test-week: need-fuzz ## let a week pass in an hour, or in so many minutes; writes results/trust/week.json: make test-week MINUTES=60
	MINUTES="$(MINUTES)" $(BIN)/python -m pytest tests/trust/test_week.py -m trust --record

test-browser: need-browser ## test the web page in headless Chromium (Debian package chromium)
	$(BIN)/python -m pytest -m browser

# Hashes of models and results are not secrets, nor are the passwords used in tests.
FIND_SECRETS = git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --no-verify \
  --exclude-files '^(models|results)/|^tests/services/bench/loadtest/recorded\.json$$|^tests/evaluation/test_store\.py$$|^docs/notebooks/.*\.ipynb$$|\.png$$' \
  --exclude-secrets '^(admin|clients|health|unused|dekag_wrong|pass|pw|s3cret)$$'

lint: need-lint ## run ruff, mypy --strict and the import contracts; check stubs and search for secrets
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/generate_proto.py --check
	$(FIND_SECRETS)

audit: need-audit ## check the pinned dependencies for known vulnerabilities; needs internet access
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip --progress-spinner off

format: need-lint ## format the code and apply automatic fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: need-proto ## regenerate services/proto from proto/
	$(BIN)/python scripts/generate_proto.py

# without --quiet, which would hide warnings from --strict
docs: need-docs ## build the documentation into site/; fails on broken links
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: need-docs ## serve the documentation on 127.0.0.1:8000 and reload on changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8000

results-quick: need-eval ## measure the shipped models again within minutes; resumes
	@$(BIN)/dekag results quick

results: need-all ## measure everything and fill results/ and the pages in docs/; resumes, takes hours
	$(BIN)/dekag experiment first-image
	$(BIN)/dekag experiment gka
	$(BIN)/dekag experiment tka
	$(BIN)/dekag experiment restoration
	$(BIN)/dekag experiment digital
	$(BIN)/dekag experiment overall
	$(MAKE) bench
	$(BIN)/dekag bench deliveries
	$(BIN)/dekag simulate week
	$(BIN)/dekag simulate variants
	$(BIN)/dekag bench simulate
	$(BIN)/dekag results quick --record
	$(BIN)/dekag results book

bench: need-all ## benchmark the services: results/load/, docs/results-load.md
	$(BIN)/dekag bench parts
	$(BIN)/dekag bench ldpc
	$(BIN)/dekag bench chain
	$(BIN)/dekag bench throughput
	$(BIN)/dekag bench cached
	$(BIN)/dekag bench channel
	$(BIN)/dekag bench start
	$(BIN)/dekag bench overload
	$(BIN)/dekag bench cost
	$(BIN)/dekag bench sweep
	$(BIN)/dekag bench distill

# Run it with the oldest supported Python, whose releases run on newer ones too. PyTorch pins the CUDA packages.
constraints: need-dev ## pin the packages in .venv
	$(BIN)/python -m pip freeze --disable-pip-version-check --exclude-editable --exclude dekag | grep -vE "^(nvidia|cuda|triton)" | \
	  sed -nE 's/^([A-Za-z0-9._-]+==[^+ ]+)(\+.*)?$$/\1/p' | LC_ALL=C sort -f > constraints.txt.new
	@mv constraints.txt.new constraints.txt
	$(BIN)/python scripts/hash_requirements.py

release: need-release ## build dist/: wheel, hashed requirements, software bill of materials, licences, checksums
	$(BIN)/python scripts/release.py

install-times: ## measure `make demo` in a fresh clone: make install-times PYTHONS="python3.11 python3.12"
	@python="$$(sh scripts/find_python.sh "$(PYTHON)")" && \
	  "$$python" scripts/measure_install.py $(or $(PYTHONS),"$$python")

down: ## remove the containers of docker-compose.yml and their volumes
	docker compose down --volumes --remove-orphans

clean: ## remove generated files
	rm -rf .run demo-out loadtest-out build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
