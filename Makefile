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

test: deps build ## the tests, unit to end-to-end, on real containerd, BuildKit, git and ssh; test-self is apart
	@scripts/test "$(BIN)" "$(ROOT)"

lint: ## formatting, vet and golangci-lint
	@scripts/lint

bench-push: deps build ## time the stages of a one-line push beside the bare engine calls
	@scripts/bench-push "$(BIN)" "$(ROOT)"

bench-build: deps build ## time builds of examples with buildpacks beside the stock lifecycle
	@scripts/bench-build "$(BIN)" "$(ROOT)"

test-self: deps build ## build this repository on a platform: its Dockerfile's images, and as an app
	@scripts/test-self "$(BIN)" "$(ROOT)"

bench-rollout: deps build ## time rollouts and rollbacks of 1, 10 and 50 instances beside the bare engine calls
	@scripts/bench-rollout "$(BIN)" "$(ROOT)"

bench-scale: deps build ## bring up 300 instances; then what idle daemons take of CPU and memory
	@scripts/bench-scale "$(BIN)" "$(ROOT)"

bench-latency: deps build ## p99 of an app, quiet and beside builds that take all they can
	@scripts/bench-latency "$(BIN)" "$(ROOT)"

bench-api: ## requests a second and p99 of the API with 1, 100 and 1,000 apps
	@scripts/bench-api

soak: deps build ## OPS (300) random changes of two apps under load: failed requests and broken sockets must be 0
	@DEIS_SOAK_OPS="$${OPS:-300}" DEIS_SOAK_SEED="$${SEED:-}" scripts/e2e "$(BIN)" "$(ROOT)" TestSoak

crash-matrix: deps build ## kill each daemon, and all, at each step of each kind of rollout
	@DEIS_CRASH="$${DEIS_CRASH:-all}" scripts/e2e "$(BIN)" "$(ROOT)" TestCrashMatrix

test-disk: deps build ## 100 deploys on a file system of 2 GB
	@DEIS_DISK_MB=2048 DEIS_DISK_DEPLOYS=100 DEIS_DISK_LAYER=20000000 DEIS_DISK_KEEP=10 DEIS_DISK_CACHE=200M \
		scripts/e2e "$(BIN)" "$(ROOT)" TestSmallDisk

fuzz: ## run every fuzz target for FUZZTIME (60s)
	@scripts/fuzz

.PHONY: help deps build base-images demo stop clean test lint bench-push bench-build test-self bench-rollout bench-scale bench-api bench-latency soak crash-matrix test-disk fuzz
