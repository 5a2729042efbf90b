# `make` alone prints what there is. On a fresh Debian 12 machine, as root, `make demo` and `make test` do all the set-up themselves.
SHELL := /bin/bash
export CGO_ENABLED := 0
CACHE := build/cache
GO ?= go
FUZZTIME ?= 20s
MINUTES ?= 10
# The packages whose tests need no root: docs/testing.md, the tier "unit".
UNIT := archtest bench cache channel config dataset doctor evict feature feature/featuretest figures lease loglimit media mediafs metrics migrate origin session share status tcpstate unixsock wire

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build build/spillway
	$(GO) build -trimpath -o build/spillway ./cmd/spillway

.PHONY: setup
setup: ## Install what is missing: QEMU, nft, curl, and a kernel for the VM (downloaded, not installed)
	@scripts/setup.sh $(CACHE)

.PHONY: demo
demo: setup build ## Stream from a real VM through four arms, check every file in each, print the table
	build/spillway bench demo --cache $(CACHE) --json build/demo.json

# A real S3 server for the tests of origins.
S3_SERVER := $(CACHE)/versitygw
$(S3_SERVER):
	GOBIN=$(CURDIR)/$(CACHE) $(GO) install github.com/versity/versitygw/cmd/versitygw@v1.8.0

.PHONY: test
test: setup $(S3_SERVER) build ## Run all tests: units, namespaces, a real VM (root)
	$(GO) test -count=1 -timeout 20m -p 2 ./...

.PHONY: test-unit
test-unit: ## Run the tests that need no root
	$(GO) test -count=1 $(addprefix ./internal/,$(UNIT))

.PHONY: race
race: setup $(S3_SERVER) build ## Run the tests under the race detector (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -race -timeout 30m -p 2 ./...

.PHONY: bench
bench: setup build ## Measure requests, handovers, a path with delay, idle leases and CPU time; figures to build/
	build/spillway bench handover --cache $(CACHE) --vm netns --json build/handover-netns.json
	build/spillway bench handover --cache $(CACHE) --vm qemu --requests 2000 --json build/handover-qemu.json
	build/spillway bench request --cache $(CACHE) --vm netns --json build/request-netns.json
	build/spillway bench request --cache $(CACHE) --vm qemu --requests 500 --json build/request-qemu.json
	build/spillway bench path --cache $(CACHE) --vm netns --json build/path-netns.json
	build/spillway bench path --cache $(CACHE) --vm qemu --json build/path-qemu.json
	build/spillway bench idle --cache $(CACHE) --json build/idle-netns.json
	build/spillway bench cpu --cache $(CACHE) --vm netns --json build/cpu-netns.json
	build/spillway bench cpu --cache $(CACHE) --vm qemu --json build/cpu-qemu.json

.PHONY: soak
soak: build ## Disturb a lab for MINUTES (default 10) under clients that check every byte
	build/spillway bench soak --cache $(CACHE) --minutes $(MINUTES)

SCALE ?= 1
.PHONY: evaluation
evaluation: setup build ## Run the whole evaluation (40 minutes; SCALE=0.1 is a tenth); report to build/evaluation
	build/spillway bench all --cache $(CACHE) --scale $(SCALE) --out build/evaluation

.PHONY: fuzz
fuzz: ## Fuzz each target for FUZZTIME (default 20s)
	@set -e; for pkg in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "== $$pkg $$target"; \
	    $(GO) test $$pkg -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x; \
	  done; \
	done

.PHONY: lint
lint: ## Run gofmt, go vet and golangci-lint (built from tools/, which takes minutes the first time)
	@test -z "$$(gofmt -l cmd internal)" || { gofmt -l cmd internal; echo "run gofmt -w on these files"; exit 1; }
	$(GO) vet ./...
	$(GO) tool -modfile=tools/go.mod golangci-lint run ./...

.PHONY: clean
clean: ## Remove what make built, but not the cache
	rm -rf build/spillway build/*.json
