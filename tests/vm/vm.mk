# Tests in virtual machines with other kernels; tests/vm/README.md says what they need. Included by the Makefile.
#
#   test-kernels          every kernel of KERNELS; with make -k the others go on when one fails
#   test-kernel-6.1       one of them

KERNELS ?= 6.1 6.12 newest
# Seconds for one kernel. All packet tests take a quarter of an hour when the machine has nothing else to do.
KERNEL_TIMEOUT ?= 7200
# Names of tests to run, or parts of names; all that talk to the kernel if empty.
KERNEL_TESTS ?=
export KERNEL_TESTS

.PHONY: test-kernels vm-test-binary $(KERNELS:%=test-kernel-%)

test-kernels: $(KERNELS:%=test-kernel-%)

$(KERNELS:%=test-kernel-%): test-kernel-%: vm-test-binary
	@newer=$$(tests/vm/nft-newer) && test_binary=$$(cat target/vm/test-binary) && \
		echo "== kernel $*" && \
		tests/vm/run --kernel $* --timeout $(KERNEL_TIMEOUT) -- tests/vm/check "$$test_binary" "$$newer"

# The path of the test binary, as cargo tells it.
vm-test-binary:
	$(call install,$(NEEDED))
	@mkdir -p target/vm
	@cargo test --locked --no-run --test main --message-format=json-render-diagnostics >target/vm/cargo.json
	@sed -n '/"kind":\["test"\]/s/.*"executable":"\([^"]*\)".*/\1/p' target/vm/cargo.json >target/vm/test-binary
	@test -x "$$(cat target/vm/test-binary)"
