# What a person runs. `make help` lists it.

CARGO ?= cargo
LOCAL = $(or $(CARGO_TARGET_DIR),target)/release/tidings-local

.PHONY: help test fmt clippy unit deny release demo up down bench crds

help: ## This list.
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

test: fmt clippy unit deny ## Everything: fmt, clippy, unit, property and cluster tests, drift checks, cargo-deny.

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

unit:
	$(CARGO) test --workspace --locked

deny:
	.ci/deny

release:
	$(CARGO) build --release --locked --workspace --bin tidings --bin tidings-local

demo: release ## A real Kubernetes, Tidings in it, and what it does, as it happens. Cleans up after itself.
	@$(LOCAL) demo

up: release ## Leave a local Kubernetes, Tidings and an inspector running; prints how to use them.
	@$(LOCAL) up

down: ## Stop what `make up` started. Twice is no error.
	@if test -x $(LOCAL); then $(LOCAL) down; else echo "Nothing was built: there is nothing to stop."; fi

bench: ## Load against the release dispatcher; prints one table, and JSON under target/bench/.
	$(CARGO) bench --locked --bench load

crds: ## Generate crds/ anew.
	$(CARGO) run --quiet --bin tidings -- crds --out crds
