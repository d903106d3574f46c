# make test: everything that can be tested on this machine, as root. make demo: the proxy at work, with comments.
# Both install what they need on a fresh Debian 12 with Rust. Elsewhere, install the programs of NEEDED yourself.

SHELL := /bin/bash
export PATH := $(PATH):/usr/sbin:/sbin:$(HOME)/.cargo/bin

# program:package. prometheus brings promtool, which checks the alert rules.
NEEDED := cc:gcc ip:iproute2 nft:nftables conntrack:conntrack promtool:prometheus $(NEEDED_BY_DEPLOY)
NEEDED_BY_DEMO := cc:gcc ip:iproute2 nft:nftables socat:socat

# $(call install,LIST): installs the packages whose programs are missing.
install = @missing=(); \
	for pair in $(1); do command -v "$${pair%%:*}" >/dev/null || missing+=("$${pair\#\#*:}"); done; \
	if (( $${\#missing[@]} )); then \
		echo "installing $${missing[*]}"; \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$${missing[@]}" >/dev/null; \
	fi

.PHONY: test demo

test:
	$(call install,$(NEEDED))
	$(MAKE) --no-print-directory kubectl
	cargo test --locked --no-fail-fast

demo:
	$(call install,$(NEEDED_BY_DEMO))
	cargo build --locked --release --bin kube-ferry
	deploy/demo.sh "$${CARGO_TARGET_DIR:-target}/release/kube-ferry"

include deploy/deploy.mk
include tests/vm/vm.mk
