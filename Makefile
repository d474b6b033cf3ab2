# The two commands that matter: make demo, make test. make help lists the rest.
SHELL := /bin/bash
GO ?= go
BIN := bin
ROOT ?= $(CURDIR)/.deis
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X github.com/deis/deis/internal/daemon.Version=$(VERSION)
# One set of flags for programs and tests, so that each package is compiled once.
export CGO_ENABLED = 0
export GOFLAGS = -trimpath -buildvcs=false

.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

deps: ## install what is missing on a Debian machine
	@scripts/install-deps

build: ## build all programs into bin/
	@scripts/build "$(BIN)" "$(LDFLAGS)"

base-images: deps build ## make the base images deis/run and deis/build in the cache
	@buildpacks/base/make-rootfs "$(ROOT)/cache/base"

demo: ## bring up a platform in .deis/, push an example, show its answer
	@scripts/demo "$(BIN)" "$(ROOT)" "$(LDFLAGS)"

stop: ## stop the demo's platform and its apps
	@DEIS_ROOT="$(ROOT)" $(BIN)/deisctl stop --apps

clean: stop ## stop the demo and remove all of its state
	rm -rf "$(ROOT)" "$(BIN)"

test: deps build ## all tests, unit to end-to-end, on real containerd, BuildKit, git and ssh
	@scripts/test "$(BIN)" "$(ROOT)"

lint: ## formatting, vet and golangci-lint
	@scripts/lint

bench-push: deps build ## time the stages of a one-line push beside the bare engine calls
	@scripts/bench-push "$(BIN)" "$(ROOT)"

bench-rollout: deps build ## time rollouts and rollbacks of 1, 10 and 50 instances beside the bare engine calls
	@scripts/bench-rollout "$(BIN)" "$(ROOT)"

bench-scale: deps build ## bring up 300 instances; then what idle daemons take of CPU and memory
	@scripts/bench-scale "$(BIN)" "$(ROOT)"

bench-api: ## requests a second and p99 of the API with 1, 100 and 1,000 apps
	@scripts/bench-api

fuzz: ## run every fuzz target for FUZZTIME (60s)
	@scripts/fuzz

.PHONY: help deps build base-images demo stop clean test lint bench-push bench-rollout bench-scale bench-api fuzz
