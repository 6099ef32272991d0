# The commands of this project. CI runs no others.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# How many nodes the demo has.
NODES ?= 1
# Which cluster `load`, `logs` and `env` mean.
CLUSTER ?= demo
# Tests of the cluster that run at once. They wait more than they compute.
TEST_THREADS ?= 4

# What `build` builds.
BUILD ?= --bins

TARGET := $(or $(CARGO_TARGET_DIR),target)
TOOLS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/portolan/tools
PORTOLAN_CLUSTER := $(TARGET)/debug/portolan-cluster
CARGO_DENY_VERSION := 0.20.2

.PHONY: help
help: ## Print this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# === Build ===

.PHONY: packages
packages:
	@e2e/packages.sh

.PHONY: build
build: packages ## Build every Rust program.
	cargo build --workspace $(BUILD) --locked

.PHONY: deps
deps: build ## Install and build what a cluster needs.
	$(PORTOLAN_CLUSTER) deps

# === Clusters ===

.PHONY: demo
demo: deps ## Start a cluster with Portolan and its samples, and show them (NODES=1).
	$(PORTOLAN_CLUSTER) up --name demo --nodes $(NODES)
	$(PORTOLAN_CLUSTER) install --name demo
	e2e/cluster/demo.sh $(TARGET)/demo/env

.PHONY: cluster
cluster: deps ## Start the bare cluster that the tests use, named test.
	$(PORTOLAN_CLUSTER) up --name test --nodes 1

.PHONY: down
down: ## Take every cluster down.
	@if [ -x $(PORTOLAN_CLUSTER) ]; then $(PORTOLAN_CLUSTER) down; \
	elif [ -n "$$(ls -A /run/portolan-cluster 2>/dev/null)" ]; then \
		cargo run --locked -p portolan-cluster -- down; fi

.PHONY: load
load: ## Put a local image archive into every node (IMAGE=archive.tar CLUSTER=demo).
	@test -n "$(IMAGE)" || { echo "say which: make load IMAGE=archive.tar" >&2; exit 2; }
	$(PORTOLAN_CLUSTER) load --name $(CLUSTER) $(IMAGE)

.PHONY: logs
logs: ## Collect all logs of a cluster into one folder (CLUSTER=demo).
	@$(PORTOLAN_CLUSTER) logs --name $(CLUSTER)

# === Images ===

# Built with optimisation, unlike those of the clusters here, and kept apart from them.
IMAGES := $(TARGET)/registry

.PHONY: images
images: packages ## Build the images for a registry of your own, as OCI archives.
	cargo build --release --locked -p portolan -p portolan-node -p portolan-sample-echo
	cargo build --locked -p portolan-cluster
	@mkdir -p $(IMAGES)
	@# Where portolan-cluster looks for programs.
	@ln -sfn $(abspath $(TARGET))/release $(IMAGES)/debug
	@for image in portolan portolan-node sample-echo sample-nginx; do \
		archive=$$(CARGO_TARGET_DIR=$(IMAGES) $(PORTOLAN_CLUSTER) image $$image); \
		echo "skopeo copy oci-archive:$$archive docker://REGISTRY/$$image:TAG"; \
	done

# === Generated files ===

.PHONY: crds
crds: ## Render crds/, the chart portolan-crds and docs/reference.md from the types.
	UPDATE=1 cargo test -p portolan-api --locked --test generated

# === Checks ===

.PHONY: fmt
fmt: ## Format the code.
	cargo fmt --all

.PHONY: lint
lint: packages deny
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

.PHONY: deny
deny: $(TOOLS)/bin/cargo-deny
	$(TOOLS)/bin/cargo-deny check bans licenses sources

# Advisories are left out above: their database is fetched from the network.
$(TOOLS)/bin/cargo-deny:
	@echo "==> install cargo-deny (about 2 minutes, once)"
	cargo install --quiet --debug --locked --root $(TOOLS) --version $(CARGO_DENY_VERSION) cargo-deny

.PHONY: check
check: lint ## Format, lints, documentation and the tests that need no cluster.
	cargo test --workspace --exclude portolan-e2e --exclude portolan-cluster --locked
	cargo test -p portolan-cluster --locked --lib --test tidy

.PHONY: test
# With the tests in the same build, dependencies are compiled once for both.
test: BUILD := --bins --tests
test: lint deps ## Every test, on a real cluster.
	$(PORTOLAN_CLUSTER) up --name test --nodes 1
	@echo "==> all tests"
	cargo test --workspace --locked --no-fail-fast -- --test-threads=$(TEST_THREADS)

# === Long runs ===

# What to do, by commas; all if empty. `make soak SCENARIO=rollouts,drain`
SCENARIO ?=

.PHONY: soak
soak: packages ## Do to a cluster what operators and failures do, while visitors ask (SCENARIO=…).
	cargo build --locked -p portolan -p portolan-node -p portolan-sample-echo -p portolan-cluster \
		-p portolan-soak
	$(PORTOLAN_CLUSTER) deps
	$(TARGET)/debug/portolan-soak $(if $(SCENARIO),--scenario $(SCENARIO))

# === Figures ===

# Programs under measure are built with optimisation; nothing else is.
BENCH := $(TARGET)/release/portolan-bench

.PHONY: bench
bench: bench-instructions bench-ingress bench-hostile bench-wake bench-kubelet bench-routes bench-apps bench-node ## Every benchmark, beside its peers; writes docs/benchmarks.md.

.PHONY: bench-build
bench-build: packages
	cargo build --release --locked --bins --examples -p portolan-bench -p portolan -p portolan-node \
		-p portolan-nft -p portolan-sample-echo

.PHONY: bench-cluster
bench-cluster: bench-build
	cargo build --locked -p portolan-cluster
	$(PORTOLAN_CLUSTER) deps

.PHONY: bench-instructions
bench-instructions: packages ## Instructions of hot functions, counted by callgrind; the tests compare.
	UPDATE=1 cargo test --locked -p portolan-ingress -p portolan-controller-pool --lib \
		-- --nocapture costs_what_is_committed cost_what_is_committed
	UPDATE=1 cargo test --locked -p portolan-nft --test instructions -- --nocapture

.PHONY: bench-ingress
bench-ingress: bench-build ## The gateway against nginx and HAProxy.
	$(BENCH) ingress

.PHONY: bench-hostile
bench-hostile: bench-build ## A neighbour's latency while others are attacked.
	$(BENCH) hostile

.PHONY: bench-wake
bench-wake: bench-cluster ## Waking sleeping Apps, with a stub for the kubelet.
	$(BENCH) wake

.PHONY: bench-kubelet
bench-kubelet: deps bench-build ## Waking on the real kubelet, beside a bare Pod.
	$(BENCH) kubelet

.PHONY: bench-routes
bench-routes: bench-cluster ## From an applied Route to its first answer.
	$(BENCH) routes

.PHONY: bench-apps
bench-apps: bench-cluster ## Ten thousand Apps: memory, API writes, Apps to Ready per second.
	$(BENCH) apps

.PHONY: bench-node
bench-node: bench-cluster ## The node's data plane, beside kube-proxy's rules.
	$(BENCH) node
