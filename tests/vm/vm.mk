# Tests in virtual machines with other kernels; tests/vm/README.md says what they need. Included by the Makefile.
#
#   test-kernels          every kernel of KERNELS; with make -k the others go on when one fails
#   test-kernel-uml-6.1   one of them, or of MORE_KERNELS
#   test-ipvs             the tests of the IPVS mode, in a kernel that has IPVS
#   kernel-ipvs           only builds that kernel

KERNELS ?= uml-6.1 uml-6.12 uml-7
# Debian's own, emulated: too slow for all tests, right for some (KERNEL_TESTS).
MORE_KERNELS := 6.1 6.12 newest
# Seconds for one kernel.
KERNEL_TIMEOUT ?= 7200
# Names of tests to run, or parts of names; all that talk to the kernel if empty.
KERNEL_TESTS ?=
export KERNEL_TESTS

EVERY_KERNEL := $(sort $(KERNELS) uml-6.1 uml-6.12 uml-7 $(MORE_KERNELS))

.PHONY: test-kernels test-ipvs kernel-ipvs vm-test-binary $(EVERY_KERNEL:%=test-kernel-%)

test-kernels: $(KERNELS:%=test-kernel-%)

$(EVERY_KERNEL:%=test-kernel-%): test-kernel-%: vm-test-binary
	@newer=$$(tests/vm/nft-newer) && test_binary=$$(cat target/vm/test-binary) && \
		echo "== kernel $*" && \
		tests/vm/run --kernel $* --timeout $(KERNEL_TIMEOUT) -- tests/vm/check "$$test_binary" "$$newer"

# program:package. ipvsadm and ipset are witnesses in the machine; the others build its kernel.
NEEDED_BY_IPVS := ipvsadm:ipvsadm ipset:ipset make:make flex:flex bison:bison bc:bc depmod:kmod busybox:busybox-static \
	cpio:cpio xz:xz-utils taskset:util-linux
# Names of tests to run, or parts of names.
IPVS_TESTS ?= ipvs::
# Those that set what counts for the whole machine, so nothing else may run beside them.
OWN_KERNEL_TESTS ?= conntrack_full::
# Seconds, the boot of half a second included.
IPVS_TIMEOUT ?= 900

# They are marked as ignored, because most machines' own kernels have no IPVS.
test-ipvs: vm-test-binary kernel-ipvs
	tests/vm/parts ipvs $(IPVS_TIMEOUT) "$$(cat target/vm/test-binary)" $(IPVS_TESTS)
	tests/vm/run --kernel ipvs --timeout $(IPVS_TIMEOUT) -- "$$(cat target/vm/test-binary)" --include-ignored $(OWN_KERNEL_TESTS)

kernel-ipvs:
	$(call install,$(NEEDED_BY_IPVS))
	tests/vm/run --kernel ipvs --prepare

# The path of the test binary, as cargo tells it.
vm-test-binary:
	$(call install,$(NEEDED))
	@mkdir -p target/vm
	@cargo test --locked --no-run --test main --message-format=json-render-diagnostics >target/vm/cargo.json
	@sed -n '/"kind":\["test"\]/s/.*"executable":"\([^"]*\)".*/\1/p' target/vm/cargo.json >target/vm/test-binary
	@test -x "$$(cat target/vm/test-binary)"
