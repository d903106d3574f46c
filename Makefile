# make test: everything that can be tested on this machine, as root. make demo: the proxy at work, with comments.
# make bench: what it costs, as a table and in target/bench.json. make bench-ipvs: what mode ipvs costs beside it.
# All install what they need on a fresh Debian 12 with Rust. Elsewhere, install the programs of NEEDED yourself.

SHELL := /bin/bash
export PATH := $(PATH):/usr/sbin:/sbin:$(HOME)/.cargo/bin

# program:package. prometheus scrapes the proxy in a test, and brings promtool, which checks the alert rules. Expanded where it is
# used, because what deploy.mk adds is only known then.
NEEDED = cc:gcc ip:iproute2 iptables-nft-restore:iptables ipset:ipset nft:nftables conntrack:conntrack prometheus:prometheus $(NEEDED_BY_DEPLOY)
NEEDED_BY_DEMO := cc:gcc ip:iproute2 nft:nftables socat:socat
NEEDED_BY_BENCH := cc:gcc ip:iproute2 nft:nftables unshare:util-linux

# $(call install,LIST): installs the packages whose programs are missing.
install = @missing=(); \
	for pair in $(1); do command -v "$${pair%%:*}" >/dev/null || missing+=("$${pair\#\#*:}"); done; \
	if (( $${\#missing[@]} )); then \
		echo "installing $${missing[*]}"; \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$${missing[@]}" >/dev/null; \
	fi

.PHONY: packages soak test laws demo bench bench-ipvs docs

# What `make test` and `make test-ipvs` install, before they run side by side.
packages:
	$(call install,$(NEEDED) $(NEEDED_BY_IPVS))

# Laws are tried on the same random cases every time, so that what fails is what has changed; `make laws` tries others.
test test-ipvs: export PROPTEST_RNG_SEED := 1
# Most tests wait for something most of the time.
test: export RUST_TEST_THREADS ?= 3
test:
	$(call install,$(NEEDED))
	$(MAKE) --no-print-directory kubectl
	cargo test --locked --no-fail-fast

# LAWS_ROUNDS times (20) the laws of the pure rooms, on new random cases. What fails is kept in proptest-regressions.
laws:
	cargo test --locked --lib --no-run
	for ((round = 1; round <= $${LAWS_ROUNDS:-20}; round++)); do cargo test --locked --lib --quiet || exit 1; done

# The manual page and shell completions, in target/docs.
docs:
	cargo run --locked --quiet --example docs -- target/docs

demo:
	$(call install,$(NEEDED_BY_DEMO))
	cargo build --locked --release --bin kube-ferry
	deploy/demo.sh "$${CARGO_TARGET_DIR:-target}/release/kube-ferry"

# The benchmarks' own build replaces target/release/kube-ferry by one with the tests' features, hence the copy.
bench: TARGET = $(abspath $(or $(CARGO_TARGET_DIR),target))
bench:
	$(call install,$(NEEDED_BY_BENCH))
	cargo build --locked --release --bin kube-ferry
	cp "$(TARGET)/release/kube-ferry" "$(TARGET)/kube-ferry-measured"
	cargo bench --locked --profile release --bench sync
	KUBE_FERRY="$(TARGET)/kube-ferry-measured" cargo bench --locked --profile release --bench node

# Mode ipvs beside mode nftables, in a virtual machine whose kernel has IPVS: a table, on standard output only.
bench-ipvs: TARGET = $(abspath $(or $(CARGO_TARGET_DIR),target))
bench-ipvs: kernel-ipvs
	$(call install,$(NEEDED_BY_BENCH))
	cargo build --locked --release --bin kube-ferry
	cp "$(TARGET)/release/kube-ferry" "$(TARGET)/kube-ferry-measured"
	cargo bench --locked --profile release --bench node --no-run --message-format=json-render-diagnostics >"$(TARGET)/bench-ipvs.json"
	KUBE_FERRY="$(TARGET)/kube-ferry-measured" tests/vm/run --kernel ipvs -- \
		"$$(sed -n '/"kind":\["bench"\]/s/.*"executable":"\([^"]*\)".*/\1/p' "$(TARGET)/bench-ipvs.json")" modes

# Churn with faults for SOAK_SECONDS (600). CHAOS_SEED repeats a run.
soak:
	$(call install,$(NEEDED))
	cargo test --locked --test main -- --ignored --exact --nocapture chaos::soak::nothing_grows_and_nothing_breaks

include deploy/deploy.mk
include tests/vm/vm.mk
include fuzz/fuzz.mk
