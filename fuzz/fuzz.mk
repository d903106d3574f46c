# make fuzz: every parser of outside bytes, FUZZ_SECONDS (60) each, from the samples of src/outside/tests.rs. What it
# finds is under fuzz/artifacts; FUZZ_TARGETS chooses.

FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= messages tables legacy watch list manifests config flags

.PHONY: fuzz
fuzz:
	@command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	$(call install,c++:g++)
	FUZZ_SEEDS="$(CURDIR)/fuzz/corpus" cargo test --locked --lib outside::tests::every_target
	@# Stable Rust can do it, but keeps the flags for those who ask like this.
	for target in $(FUZZ_TARGETS); do \
		RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none $$target -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=8192 -timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=256 || exit 1; \
	done
