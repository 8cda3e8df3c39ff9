# What a person runs. `make help` lists it.

CARGO ?= cargo
TARGET = $(or $(CARGO_TARGET_DIR),target)
LOCAL = $(TARGET)/release/tidings-local
# Most tests wait for what they have started: more of them at a time than there are cores, where those are few.
THREADS = $(or $(RUST_TEST_THREADS),$(shell cores=$$(nproc); echo $$((cores > 4 ? cores : 4))))
CACHE = $(or $(TIDINGS_CACHE_DIR),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tidings)

.PHONY: help test begin fmt clippy unit deny matrix release image node ground demo up down bench crds manifests

help: ## This list.
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

# Tests that find something missing write a line into this.
export TIDINGS_SKIPPED ?= $(abspath $(TARGET))/skipped

# The image takes a release build, which takes what the tests leave of the cores. What goes wrong with it is told afterwards.
test: begin fmt clippy ## Everything: fmt, clippy, unit, property and cluster tests, a real node, drift checks, cargo-deny.
	$(CARGO) test --workspace --locked --no-run
	@nice -n 19 $(MAKE) --no-print-directory image deny >$(TARGET)/beside.log 2>&1 & beside=$$!; \
	trap 'kill $$beside 2>/dev/null' EXIT INT TERM; \
	$(MAKE) --no-print-directory unit || exit; wait $$beside || true
	@$(MAKE) --no-print-directory node deny
	@cat $(TIDINGS_SKIPPED); echo "Passed in $$(($$(date +%s) - $$(cat $(TARGET)/begun))) s; skipped: $$(wc -l <$(TIDINGS_SKIPPED))."

begin:
	@mkdir -p $(TARGET) && date +%s >$(TARGET)/begun && : >$(TIDINGS_SKIPPED)

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

unit:
	RUST_TEST_THREADS=$(THREADS) $(CARGO) test --workspace --locked

deny:
	.ci/deny

matrix: ## The cluster tests on every Kubernetes that is pinned, one after the other; before a release. FILTER= some of them.
	@for version in $(notdir $(wildcard tests/cluster/kubernetes/1.*)); do \
		echo "Kubernetes $$version"; \
		RUST_TEST_THREADS=$(THREADS) TIDINGS_KUBERNETES=$$version $(CARGO) test --locked --test it -- $(FILTER) || exit 1; \
	done

release:
	$(CARGO) build --release --locked --workspace --bin tidings --bin tidings-local

image: ## The container image and its SBOM, without a container engine: target/image/tidings.tar, tidings.cdx.json.
	$(CARGO) build --release --locked --bin tidings
	@.ci/sbom $(TARGET)/image/tidings.cdx.json
	@$(CARGO) run --quiet --locked --package tidings-cluster --bin tidings-image -- \
		--program $(TARGET)/release/tidings --out $(TARGET)/image/tidings.tar --sbom $(TARGET)/image/tidings.cdx.json

node: image ## The tests on a real node; as root. Elsewhere they are skipped, and say so.
	$(CARGO) test --locked --package tidings-cluster --test node

# What a fresh machine may lack, told before minutes of building.
ground:
	@command -v $(CARGO) >/dev/null || { echo "Rust is missing: install it by https://rustup.rs" >&2; exit 1; }
	@command -v go >/dev/null || test -x "$$KUBEBUILDER_ASSETS/kube-controller-manager" || test -n "$(wildcard $(CACHE)/kubernetes-*/kubectl)" || \
		{ echo "Go is missing: install Go 1.26 from https://go.dev/dl (it builds the local Kubernetes)" >&2; exit 1; }

demo: ground release ## A real Kubernetes, Tidings in it, and what it does, as it happens. Cleans up after itself.
	@$(LOCAL) demo

up: ground release ## Leave a local Kubernetes, Tidings and an inspector running; prints how to use them.
	@$(LOCAL) up

down: ## Stop what `make up` started. Twice is no error.
	@if test ! -x $(LOCAL) && test ! -d $(TARGET)/local; then echo "Nothing runs here: there is nothing to stop."; \
	elif test -x $(LOCAL) || $(CARGO) build --release --locked --package tidings-cluster --bin tidings-local; \
	then $(LOCAL) down; fi

bench: ## Load against the release dispatcher; prints one table, and JSON under target/bench/.
	$(CARGO) bench --locked --bench load

crds: ## Make crds/, docs/reference.md and the chart's definitions anew.
	$(CARGO) run --quiet --bin tidings -- crds --out crds --reference docs/reference.md
	$(CARGO) run --quiet --bin tidings -- crds --out charts/tidings/files/crds

manifests: crds ## Make deploy/ and the chart's kept renderings anew.
	TIDINGS_WRITE_MANIFESTS=1 $(CARGO) test --locked --test it -- it::chart::the_chart_renders it::chart::deploy::deploy_is_made it::argocd::the_patch
