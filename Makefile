# What can be done here. Each target is one or two commands that anyone could type.

GO ?= go
VERSION = $(shell sh deploy/version.sh)
FUZZTIME ?= 30s

help: ## this list
	@grep -E '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*## /|/' | awk -F'|' '{printf "  make %-8s %s\n", $$1, $$2}'

build: ## static zt-relay and zt-daemon into bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags='-s -w -X main.linkedVersion=$(VERSION)' -o bin/ ./cmd/...

image: ## the container image and its SBOM into bin/; NAME=NAME[:TAG] calls it something else
	@sh test/tools.sh go git
	$(GO) run ./deploy/image -version '$(VERSION)' $(if $(NAME),-name '$(NAME)')

test: ## vet, and every test that needs no root, network or Kubernetes, with the race detector
	@sh test/tools.sh go git make gcc
	$(GO) vet ./... && $(GO) vet -tags e2e ./test
	$(GO) test -race -json ./... | $(GO) run ./test/report
	$(GO) test -run Allocate ./daemon # the race detector allocates by itself

lint: ## vet, staticcheck, gofmt
	$(GO) vet ./... && $(GO) vet -tags e2e ./test && $(GO) tool staticcheck -tags e2e ./...
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$unformatted" || { echo "gofmt -w these:"; echo "$$unformatted"; exit 1; }

fuzz: ## every fuzz target for FUZZTIME, 30s each
	@for p in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -r -n1 dirname | sort -u); do for f in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' $$p/*_test.go); do \
		echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$p || exit 1; done; done

bench: ## zt beside its peers (root); QUICK=1: 3 minutes; ONLY=zt,tcp; SOAK=1: memory, 10 minutes; ROUNDS=n JSON=file; without the first three the Go benchmarks too
ifeq ($(QUICK)$(ONLY)$(SOAK),)
	$(GO) test -run '^$$' -bench . ./...
	$(GO) test -count=1 -v -run SetUpRoundTrips ./daemon | grep -E 'round trips|^(---|ok|FAIL)'
	$(GO) run ./test/demo -bench
endif
	@sh test/tools.sh go ip
	$(GO) -C test/bench run . $(if $(SOAK),-soak) $(if $(QUICK),-quick) $(if $(ONLY),-only $(ONLY)) $(if $(ROUNDS),-rounds $(ROUNDS)) $(if $(JSON),-json $(abspath $(JSON)))

swarm: ## a relay with ten thousand sessions: memory, CPU, churn, restart (root; 5 minutes)
	@sh test/tools.sh go ip nft
	$(GO) run ./test/swarm/measure

paths: ## a flow beside kernel TCP over delay, loss and reordering (root; QUICK=1: one round)
	@sh test/tools.sh go ip
	$(GO) run ./test/paths $(if $(QUICK),-quick)

e2e: ## the whole of it in network namespaces, with a real API server and a browser (root)
	@sh test/tools.sh go git make gcc ip nft chromium containerd runc
	$(GO) test -tags e2e -count=1 -timeout 30m -json ./test | $(GO) run ./test/report -v -skips=fail

k8s: ## nodes in real clusters, and every kubectl verb through the overlay (root; 15 minutes; QUICK=1: 6; ONLY=verbs,streams; JSON=file)
	@sh test/tools.sh go git make ip nft containerd runc /usr/lib/cni/bridge busybox conntrack script
	$(GO) run ./test/k8s $(if $(QUICK),-quick) $(if $(ONLY),-only '$(ONLY)') $(if $(JSON),-o $(abspath $(JSON)))

demo: ## the whole of it on loopback, told line by line; CHECK=1 runs unattended, CONTEXT=name takes your own cluster
	@sh test/tools.sh go git make gcc kubectl
	@$(GO) run ./test/demo $(if $(CHECK),-check) $(if $(CONTEXT),-context '$(CONTEXT)')

clean: ## remove what was built here; the Kubernetes build stays in your cache directory
	rm -rf bin

.PHONY: help build image test lint fuzz bench swarm paths e2e k8s demo clean
.DEFAULT_GOAL := help
