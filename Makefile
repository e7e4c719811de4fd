# The two commands of the README, and what they are made of.
#
#   make lab    installs what is missing, builds, deploys the lesson's lab, prints every exercise, leaves the lab running
#   make test   installs what is missing, and runs every test; CI runs this

SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help lab test check build packages destroy

help:
	@sed -n 's/^#   //p' Makefile

packages:
	@scripts/install-packages

build:
	cargo build --release --locked --bins --package tortie --package cni --package lab

lab: packages build
	@scripts/show-lesson

destroy:
	lab/01-calico-ipam/destroy.sh

check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --features sim/mistakes --locked -- -D warnings
	cargo xtask tidy

test: packages check
	scripts/fetch-debian-kubectl
	scripts/install-packages callers || echo "podman and Debian's CNI plugins are not there: their tests are skipped" >&2
	cargo build --workspace --bins --locked
	TORTIE_REQUIRE_ETCD=1 cargo test --workspace --locked
