# Ambient Lite. `make` alone lists what there is; every target installs what it needs by itself.

SHELL        := /bin/bash
.SHELLFLAGS  := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Debian's own Python where it is new enough: python3-bpfcc is built beside it.
PYTHON ?= $(shell for p in /usr/bin/python3 python3; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
VENV   := .venv
BIN    := $(VENV)/bin
SUDO   := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# What runs (python3-bpfcc compiles eBPF), what builds (gcc, libssl-dev), what the local mesh needs
# (nft for ClusterIPs, dnsmasq for names) and what the demo's pods run (curl, iperf3) or look with (tcpdump).
APT := python3-venv python3-dev python3-bpfcc gcc libc6-dev libssl-dev iproute2 nftables dnsmasq-base \
	procps curl iperf3 tcpdump ca-certificates
# AES-GCM that is faster than OpenSSL's where the CPU has VAES; the engine is built without it where it does not exist.
APT_IF_THERE := $(if $(filter x86_64,$(shell uname -m)),libipsec-mb-dev)
ENGINE_SOURCES := $(wildcard hbone/engine/*.c hbone/engine/*.h)

say = @printf '\033[1m==> %s\033[0m\n' "$(1)" >&2

.PHONY: help demo test lint bench fuzz clean install format generate system
help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

system: $(VENV)/.system
$(VENV)/.system: Makefile
	@mkdir -p $(VENV)
	@missing=(); for p in $(APT); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing+=($$p); done; \
	if [ $${#missing[@]} -gt 0 ]; then \
		printf '\033[1m==> %s\033[0m\n' "Debian packages: $${missing[*]}" >&2; \
		$(SUDO) apt-get update -qq; \
		DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null; \
	fi
	@for p in $(APT_IF_THERE); do \
		dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' && continue; \
		add="$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$p"; \
		$$add >/dev/null 2>&1 || { $(SUDO) apt-get update -qq && $$add >/dev/null 2>&1; } || \
			printf '%s is not to be had here; the engine does without it\n' $$p >&2; \
	done
	@touch $@

$(BIN)/python: | $(VENV)/.system
	$(call say,Python environment in $(VENV))
	@$(or $(PYTHON),$(error no Python 3.11 or newer found: install python3 of Debian 12 or later)) -m venv $(VENV)
	@$(BIN)/pip install -qq --disable-pip-version-check --upgrade pip setuptools wheel

# Only the one package of Debian's is let in; a .pth to dist-packages would bring all the others with it.
$(VENV)/.bcc: $(BIN)/python
	@ln -sfn /usr/lib/python3/dist-packages/bcc "$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')/bcc"
	@touch $@

install: $(VENV)/.installed ## set up what the mesh needs to run
$(VENV)/.installed: pyproject.toml $(ENGINE_SOURCES) $(VENV)/.system $(VENV)/.bcc
	$(call say,Installing ambientlite (builds the HBONE engine))
	@$(BIN)/pip install -qq --disable-pip-version-check --no-build-isolation -e .
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(call say,Installing what the tests use)
	@$(BIN)/pip install -qq --disable-pip-version-check --no-build-isolation -e '.[test,envoy]'
	@touch $@

demo: $(VENV)/.installed ## two nodes, real traffic, ten checks (KEEP=1 leaves the mesh up)
	$(call say,Demo)
	@$(SUDO) $(BIN)/python -m daemonset.demo $(if $(KEEP),--keep)

test: $(VENV)/.tested ## all tests (ARGS=... goes to pytest)
	$(call say,Tests)
	@$(SUDO) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
		--reruns 1 --rerun-show-tracebacks -r aR $(ARGS)

lint: $(VENV)/.tested ## ruff, mypy --strict, import layers, generated code
	$(call say,ruff)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	$(call say,mypy --strict)
	@$(BIN)/mypy
	$(call say,import layers)
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports
	$(call say,generated code)
	@$(BIN)/python -m istiodlite.api.generate --check

bench: $(VENV)/.tested ## measure against no mesh and peers (ONLY=hbone,mesh ROUNDS=3)
	$(call say,Benchmarks)
	@$(SUDO) $(BIN)/python -m tests.bench $(if $(ONLY),--only $(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

fuzz: $(VENV)/.tested ## fuzz the engine's parsers (SECONDS_EACH=60; needs clang)
	@$(BIN)/python -m tests.fuzz.run --seconds $(or $(SECONDS_EACH),60)

format: $(VENV)/.tested ## ruff format and the safe fixes
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

generate: $(VENV)/.tested ## regenerate protobuf code, generated pages, the shipped eBPF byte code
	@$(BIN)/python -m istiodlite.api.generate
	@$(BIN)/python -m hbone.engine.diagram
	@$(BIN)/python -m daemonset.ctl reasons --markdown > docs/reasons.md
	@$(SUDO) $(BIN)/python -m ebpf.compiler --write

clean: ## remove the environment and everything built
	@rm -rf $(VENV) build dist *.egg-info hbone/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
