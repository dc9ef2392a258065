# What people and CI run. Everything below is one line here; how it is done stands in tests/ and demo/.

# What is costly to make and worth keeping, outside the checkout: cargo's target, csi-sanity, cargo-deny, Kubernetes.
export CISTERN_CACHE ?= $(HOME)/.cache/cistern

.PHONY: help build demo test lint unit sanity local lab cluster campaign bench setup fresh
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':[^#]*## ' '/^[a-z ]+:.*## / { printf "  make %-24s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## the program, as released: target/release/cistern
	cargo build --release --locked

demo: ## see it work, on this machine
	demo/run

test: setup ## everything that CI runs; closes with "N passed, N failed"
	tests/run

lint unit sanity local: setup ## one layer of it (the layers lab and cluster: tests/run cluster)
	tests/run $@

lab: setup ## two hosts with disks of their own to play with, and how to go on
	tests/lab/lab play

cluster: setup ## a Kubernetes of two nodes to play with, the chart installed, and how to go on
	tests/lab/cluster play

campaign: setup ## many seeds, resumable: WHAT=power SEEDS=0..99; tests/campaign says which there are
	tests/campaign $(WHAT) $(SEEDS)

bench: ## measure the release: WHAT=hop (through a controller), WHAT=fleet (thousands of hosts; HOSTS="50 500"), or both
	cargo bench --locked $(foreach one,$(or $(WHAT),hop fleet),--bench $(one)) -- $(HOSTS)

setup: ## install and build what the tests need (Debian or Ubuntu, as root)
	tests/setup

fresh: ## demo and test of the last commit in a bare Debian, made for it and removed
	tests/fresh
