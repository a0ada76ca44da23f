# The commands a person types. Each one says what it does; the work is in scripts/ and bench/, one file a task.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup run cluster failover chaos chaos-soak chaos-mutants chaos-points simulation gpu-check test lint fmt docs-check bench eval clean

help: ## show this list
	@echo "ragged: make COMMAND"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do printf '%-14s %s\n' "$$name" "$$what"; done
	@echo "Settings and what the commands read and write: CONTRIBUTING.md"

setup: ## install missing system packages, check the Rust toolchain, fetch the default model
	@scripts/install-system-packages
	@scripts/check-rust
	@scripts/fetch-model

run: setup ## build, start a node on 127.0.0.1:7400, index the demo corpus, show three searches, serve until Ctrl-C
	@scripts/run-demo

cluster: setup ## the same with three nodes as a cluster, on 127.0.0.1:7420, 7430 and 7440
	@scripts/run-cluster

test: setup ## build and run every test
	@scripts/run-tests

lint: setup ## formatting, clippy (warnings are errors), scripts, documents
	@scripts/lint

fmt: ## format the Rust sources
	@cargo fmt --all

docs-check: ## check the documents: links, examples, commands
	@scripts/check-docs

failover: setup ## kill the nodes of a cluster in turn, 20 times; say how long writes waited
	@scripts/failover

chaos: setup ## break a cluster for seven minutes and check what it promised; with root also its network and disks
	@scripts/run-chaos

chaos-soak: setup ## the same for 70 minutes
	@scripts/run-chaos --nodes 5 --seconds 4200

chaos-mutants: setup ## switch known bugs on and see that the checks find each (docs/mutants.md)
	@scripts/run-chaos-mutants

chaos-points: setup ## kill a node at each named point of the code and check what it comes back with
	@scripts/run-chaos-mutants --points

simulation: ## run replication in 10,000 simulated clusters, each from a seed; SEEDS=N FIRST=N or SEED=N for others
	@scripts/run-simulation

gpu-check: setup ## build what checks and measures a GPU into the folder gpu-check, and run it where there is one (docs/gpu.md)
	@scripts/gpu-check

bench: setup ## measure speed and size beside other libraries; MILLION=1 with a million documents, PARTS="..." only some; needs ../shared
	@bench/run $(PARTS)

eval: setup ## measure search quality on scifact and cranfield; needs ../shared
	@scripts/evaluate

clean: ## delete the shared build folder (the next build takes about half an hour again)
	@source scripts/paths.sh && cargo clean
