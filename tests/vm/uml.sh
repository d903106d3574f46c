# A kernel built as User-Mode Linux from Debian's source package, and started; sourced by run.
#
# The kernel is then an ordinary program: it boots in half a second and computes at the machine's own speed, where
# the emulation of a PC computes 15 to 30 times slower. It has to be built once (a few minutes on two processors).

# uml_source KERNEL: the Debian release that has its source.
uml_source() {
    case $1 in
        uml-6.1) echo bookworm ;;
        uml-6.12) echo trixie ;;
        uml-7) echo trixie-backports ;;
        *) die "no kernel $1: 6.1, 6.12, newest, uml-6.1, uml-6.12, uml-7 or ipvs" ;;
    esac
}

# What the compiler never reads, but unpacking would take longer than all else but the compiler.
uml_left_out="*/Documentation/*/* *.dts *.dtsi */sound/*.[ch] */tools/testing/* */tools/perf/* */drivers/gpu/*.[ch]
    */drivers/net/ethernet/*.[ch] */drivers/net/wireless/*.[ch] */drivers/media/*.[ch] */drivers/staging/*.[ch]
    */drivers/scsi/*.[ch] */drivers/infiniband/*.[ch] */drivers/iio/*.[ch] */drivers/usb/*.[ch]
    linux-source-*/arch/[a-tv-wyz]*/*.[chS]"

# prepare_uml KERNEL FOLDER
prepare_uml() {
    local release new=$2.new package archive pattern excluded=() started=$SECONDS
    [ ! -e "$2/linux" ] || return 0
    need gcc gcc libc6-dev
    need make make
    need flex flex
    need bison bison
    need bc bc
    need depmod kmod
    need perl perl
    need xz xz-utils
    need busybox busybox-static
    need cpio cpio
    release=$(uml_source "$1") || exit 125
    know "$release"
    package=$(depends "$release" linux-source | grep '^linux-source-') || die "$release has no linux-source"
    say "fetching $package of $release (about 160 MB)"
    rm -rf "$new" "$2"
    unpack "$release" "$new/deb" "$package"
    archive=$(find "$new/deb/usr/src" -name 'linux-source-*.tar.xz')
    mkdir "$new/src" "$new/build"
    for pattern in $(set -f && echo $uml_left_out); do excluded+=("--exclude=$pattern"); done
    tar xf "$archive" -C "$new/src" --strip-components=1 --wildcards "${excluded[@]}" || die "cannot unpack $archive"
    mend_uml "$new/src"
    build_uml "$new"
    build_uml_initramfs "$new"
    rm -rf "$new/deb" "$new/src" "$new/build"
    mv "$new" "$2"
    say "built User-Mode Linux $(cat "$2/version") in $((SECONDS - started)) s"
}

# mend_uml SOURCES: kernels before 6.13 keep 2696 bytes of a program's registers, and processors with AMX have 11008: the
# first program ends with a segmentation fault. The patch is for them; other sources do not have the line.
mend_uml() {
    ! grep -q 'HOST_FP_SIZE, 2696' "$1/arch/x86/um/user-offsets.c" || {
        need patch patch
        patch -s -d "$1" -p1 <"$here/uml-xstate.patch" || die "uml-xstate.patch does not fit these sources"
    }
}

# build_uml FOLDER: src and uml.config to linux.
build_uml() {
    local make=(make -s -C "$1/src" ARCH=um "O=$1/build") option refused=
    "${make[@]}" KCONFIG_ALLCONFIG="$here/uml.config" allnoconfig >"$1/log" 2>&1 </dev/null ||
        { tail -n 20 "$1/log" >&2; die "cannot configure the kernel, see $1/log"; }
    # What these sources have under no such name, older or newer ones have; what they have, they must take.
    for option in $(sed -n 's/^CONFIG_//p' "$here/uml.config" | grep -vxFf <(sed 's/^CONFIG_//' "$1/build/.config")); do
        ! grep -rqE "^[[:space:]]*(menu)?config ${option%=*}\$" "$1/src" --include='Kconfig*' || refused="$refused $option"
    done
    [ -z "$refused" ] || die "this kernel source refuses:$refused"
    say "building User-Mode Linux $(make -s -C "$1/src" kernelversion), a few minutes"
    "${make[@]}" "-j$(nproc)" linux >>"$1/log" 2>&1 </dev/null || { tail -n 20 "$1/log" >&2; die "cannot build the kernel, see $1/log"; }
    "${make[@]}" kernelrelease >"$1/version" && strip -o "$1/linux.new" "$1/build/linux" && mv "$1/linux.new" "$1/linux" || exit 125
    # For modprobe to find that all is built in.
    mkdir -p "$1/lib/modules/$(cat "$1/version")"
    : >"$1/lib/modules/$(cat "$1/version")/modules.order"
    cp "$1"/build/modules.builtin* "$1/lib/modules/$(cat "$1/version")/" && depmod -b "$1" "$(cat "$1/version")" || exit 125
}

# build_uml_initramfs FOLDER: busybox and the first stage.
build_uml_initramfs() {
    local tree=$1/initramfs.d
    mkdir -p "$tree"/{bin,modules,proc,sys,dev,host,overlay,root}
    cp "$(command -v busybox)" "$tree/bin/busybox"
    cp "$here/guest-init" "$tree/init" && chmod 755 "$tree/init"
    (cd "$tree" && find . | cpio -o -H newc --quiet -R 0:0) >"$1/initramfs" || die "cpio failed"
    rm -rf "$tree"
}

# start_uml FOLDER: replaces this shell by the machine. Standard output and error are 3 and 4, the console is 1.
#
# On one processor of the host, because kernel and program take turns: between two, each system call takes five
# times as long, for the wake-ups. Its memory is a file without a name; in /dev/shm it never gets to a disk.
#
# Kernels without seccomp mode (6.16 has it) fork for each program, and from the C library a child inherits an area for rseq(2) that
# the kernel then unmaps: the host ends the child when it writes there. So the C library is told to ask for none.
start_uml() {
    local processors
    processors=$(taskset -cp $$ | sed 's/.*: //; s/,/\n/g' | awk -F- '{ for (i = $1; i <= $NF; i++) print i }')
    [ ! -w /dev/shm ] || export TMPDIR=/dev/shm
    exec 5>"$run/status"
    export GLIBC_TUNABLES=glibc.pthread.rseq=0
    exec setpriv --pdeathsig TERM timeout --kill-after=5 "$timeout" setpriv --pdeathsig KILL \
        taskset -c "$(pick $processors)" "$1/linux" "mem=${memory}M" "initrd=$1/initramfs" \
        con=null con0=null,fd:1 con1=null,fd:3 con2=null,fd:4 con3=null,fd:5 quiet loglevel=4 panic=-1 seccomp=on \
        "vm_tree=hostfs" "vm_guest=$here/guest" "vm_run=$run"
}

# pick WORD...: another one for each run.
pick() {
    shift $(($$ % $#))
    echo "$1"
}
