# A Debian kernel made ready to boot quickly in qemu's emulation of a PC, and started there; sourced by run.
#
# What counts in software emulation is the number of instructions before the command: hence the kernel is
# unpacked here rather than in the machine, modules are stored uncompressed, and the initial file system
# holds only what is needed to reach the host's tree.

# release_of KERNEL: the Debian release that has it. 6.1 and 6.12 are the long-term kernels of Debian 12 and
# 13; the newest that Debian offers is always in sid.
release_of() {
    case $1 in
        6.1) echo bookworm ;;
        6.12) echo trixie ;;
        newest) echo sid ;;
        *) die "no kernel $1: 6.1, 6.12, newest, uml-6.1, uml-6.12, uml-7 or ipvs" ;;
    esac
}

# Modules without which the tests mean nothing: a kernel that lacks one is refused when it is prepared, not
# skipped when it runs. All load on demand. (Of IPVS' schedulers Debian's 6.1 lacks twos, 6.12 has it.)
modules_needed="virtio_pci virtio_console 9p 9pnet_virtio overlay
    nf_tables nft_chain_nat nft_nat nft_masq nft_redir nft_reject_ipv4 nft_reject_ipv6 nft_reject_inet
    nft_fib_ipv4 nft_fib_ipv6 nft_fib_inet nft_numgen nft_hash nft_ct nft_log nft_limit nft_quota
    nf_conntrack nf_conntrack_netlink nf_nat sctp xt_ipvs
    ip_vs ip_vs_rr ip_vs_wrr ip_vs_lc ip_vs_wlc ip_vs_fo ip_vs_ovf ip_vs_lblc ip_vs_lblcr ip_vs_dh ip_vs_sh
    ip_vs_mh ip_vs_sed ip_vs_nq dummy veth bridge br_netfilter macvlan ipvlan ifb tun sch_netem"
modules_to_boot="virtio_pci virtio_console 9pnet_virtio 9p overlay"

# prepare_pc KERNEL FOLDER
prepare_pc() {
    local release new=$2.new image binaries modules vmlinuz
    # Not the machine's own qemu: 7.2 of Debian 12 corrupts flags now and then and so crashes one boot in four.
    qemu=$(program trixie qemu-system-x86 usr/bin/qemu-system-x86_64) || exit 125
    [ ! -e "$2/vmlinux" ] || return 0
    need depmod kmod
    need busybox busybox-static
    need cpio cpio
    need xz xz-utils
    need zstd zstd
    release=$(release_of "$1") || exit 125
    know "$release"
    image=$(depends "$release" linux-image-amd64 | grep '^linux-image-') || die "$release has no linux-image-amd64"
    # In newer releases the image package is empty and depends on those with kernel, modules and their lists.
    binaries=$(depends "$release" "$image" | grep -E '^linux-(base|binary|modules)-[0-9]')
    say "fetching $image of $release (about 110 MB)"
    rm -rf "$new" "$2"
    unpack "$release" "$new/deb" ${binaries:-$image}
    modules=$(find "$new/deb" -path '*/lib/modules/*' -prune)
    [ -d "$modules/kernel" ] || die "$image has no modules"
    keep_modules "$modules" "$new"
    vmlinuz=$(find "$new/deb/boot" "$modules" -maxdepth 1 -name 'vmlinuz*' 2>/dev/null)
    unpack_vmlinux "$vmlinuz" "$new/vmlinux"
    check_modules "$new"
    build_initramfs "$new"
    rm -rf "$new/deb"
    mv "$new" "$2"
}

# keep_modules FROM TO: those that have to do with networks and virtual machines, uncompressed.
keep_modules() {
    local version=${1##*/} part
    local to=$2/lib/modules/$version
    for part in net lib crypto arch/x86/crypto fs/9p fs/netfs fs/overlayfs fs/fscache drivers/virtio \
        drivers/char/virtio_console.ko drivers/char/virtio_console.ko.xz drivers/net; do
        [ ! -e "$1/kernel/$part" ] || { mkdir -p "$to/kernel/${part%/*}" && cp -a "$1/kernel/$part" "$to/kernel/$part"; } || exit 125
    done
    rm -rf "$to"/kernel/net/{wireless,mac80211,bluetooth,nfc} "$to"/kernel/drivers/net/{ethernet,wireless,wwan,can,usb}
    cp "$1"/modules.builtin* "$1"/modules.order "$to/" || exit 125
    find "$to" -name '*.ko.xz' -print0 | xargs -0 -r -P"$(nproc)" -n64 xz -d || exit 125
    find "$to" -name '*.ko.zst' -print0 | xargs -0 -r -P"$(nproc)" -n64 zstd -qd --rm || exit 125
    depmod -b "$2" "$version" || die "depmod failed for $version"
    echo "$version" >"$2/version"
}

# check_modules FOLDER
check_modules() {
    local module missing=
    for module in $modules_needed; do
        modprobe -d "$1" -S "$(cat "$1/version")" --show-depends "$module" >/dev/null 2>&1 || missing="$missing $module"
    done
    [ -z "$missing" ] || die "kernel $(cat "$1/version") lacks:$missing"
}

# unpack_vmlinux BZIMAGE FILE: the ELF file within a bzImage. Its place is in the boot header (the kernel's
# Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length).
unpack_vmlinux() {
    local sectors offset length
    sectors=$(od -An -tu1 -j497 -N1 "$1") offset=$(od -An -tu4 -j584 -N4 "$1") length=$(od -An -tu4 -j588 -N4 "$1")
    offset=$(((sectors + 1) * 512 + offset))
    # The last four bytes are the length of what is packed, not of the packed stream.
    tail -c +$((offset + 1)) "$1" | head -c $((length - 4)) >"$2.packed"
    case $(od -An -tx1 -N4 "$2.packed" | tr -d ' ') in
        fd377a58) xz -dc "$2.packed" >"$2" ;;
        28b52ffd) zstd -qdc "$2.packed" >"$2" ;;
        1f8b*) gzip -dc "$2.packed" >"$2" ;;
        *) die "$1 is packed in a way unknown here" ;;
    esac || die "cannot unpack $1"
    rm "$2.packed"
    [ "$(head -c 4 "$2" | od -An -tx1 | tr -d ' ')" = 7f454c46 ] || die "$1 holds no ELF file"
}

# build_initramfs FOLDER: busybox, the modules that reach the host's tree, in load order, and the first stage.
build_initramfs() {
    local tree=$1/initramfs.d version module path number=10
    version=$(cat "$1/version")
    mkdir -p "$tree"/{bin,modules,proc,sys,dev,host,overlay,root}
    cp "$(command -v busybox)" "$tree/bin/busybox"
    for module in $modules_to_boot; do
        modprobe -d "$1" -S "$version" --show-depends "$module" | awk '$1 == "insmod" { print $2 }'
    done | awk '!seen[$1]++' >"$1/boot-order"
    while read -r path; do
        cp "$path" "$tree/modules/$number-${path##*/}" || exit 125
        number=$((number + 1))
    done <"$1/boot-order"
    cp "$here/guest-init" "$tree/init" && chmod 755 "$tree/init"
    (cd "$tree" && find . | cpio -o -H newc --quiet -R 0:0) >"$1/initramfs" || die "cpio failed"
    rm -rf "$tree" "$1/boot-order"
}

# start_pc FOLDER: replaces this shell by the machine. Standard output and error are 3 and 4.
start_pc() {
    local qemu_root=${qemu%/start} command_line
    command_line="console=ttyS0 quiet loglevel=4 panic=-1 reboot=t nokaslr mitigations=off random.trust_cpu=on"
    command_line="$command_line tsc=reliable no_timer_check nowatchdog cryptomgr.notests init_on_alloc=0 rcupdate.rcu_expedited=1 audit=0 apparmor=0 selinux=0 net.ifnames=0"
    command_line="$command_line vm_tree=9p vm_guest=$here/guest vm_run=$run"
    exec setpriv --pdeathsig TERM timeout --kill-after=5 "$timeout" setpriv --pdeathsig KILL "$qemu" \
        -no-user-config -nodefaults -display none -no-reboot -nic none \
        -machine q35,sata=off,smbus=off,usb=off,vmport=off,i8042=off -accel tcg,thread=multi,tb-size=512 -cpu max \
        -smp "$cpus" -m "$memory" -L "$qemu_root/usr/share/qemu" -L "$qemu_root/usr/share/seabios" \
        -kernel "$1/vmlinux" -initrd "$1/initramfs" -append "$command_line" \
        -chardev "file,id=console,path=$run/console" -serial chardev:console \
        -device virtio-serial-pci -device virtio-rng-pci \
        -chardev file,id=stdout,path=/dev/fd/3 -device virtserialport,chardev=stdout,nr=1 \
        -chardev file,id=stderr,path=/dev/fd/4 -device virtserialport,chardev=stderr,nr=2 \
        -chardev "file,id=status,path=$run/status" -device virtserialport,chardev=status,nr=3 \
        -fsdev local,id=host,path=/,security_model=none,readonly=on,multidevs=remap -device virtio-9p-pci,fsdev=host,mount_tag=host
}
