# Debian packages of other releases, unpacked into the cache; sourced by run and nft-newer.
#
# Nothing here is installed, and the machine's own apt sources stay as they are: each release has lists of
# its own under $cache/apt, filled from the archive that this machine's apt already uses.

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
cache=${KUBE_FERRY_VM_CACHE:-${CARGO_TARGET_DIR:-$here/../../target}/vm}
mkdir -p "$cache" || exit 125
cache=$(readlink -f "$cache")

# Statuses of our own failures start at 125, as with env(1) and docker(1), to be told from the command's.
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 125
}

say() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

# need COMMAND PACKAGE...: installs the packages with apt when the command is missing.
need() {
    command -v "$1" >/dev/null && return
    [ "$(id -u)" = 0 ] || die "$1 is missing; root is needed to install ${*:2}"
    say "installing ${*:2}"
    { DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${@:2}" ||
        { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${@:2}"; }
    } >"$cache/apt.log" 2>&1 || die "apt cannot install ${*:2}, see $cache/apt.log"
}

# The address of the main Debian archive, as this machine's apt knows it.
archive() {
    apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' |
        awk -F'|' '$1 == "Debian" && $2 == "Debian" { print $3; exit }'
}

# apt_in RELEASE APT-COMMAND...: an apt command that sees that release only.
apt_in() {
    local lists=$cache/apt/$1
    "$2" -qq -o "Dir::Etc::sourcelist=$lists/sources.list" -o Dir::Etc::sourceparts=- \
        -o "Dir::State::lists=$lists/lists" -o Dir::State::status=/dev/null -o "Dir::Cache=$lists" \
        -o APT::Sandbox::User="$(id -un)" -o Acquire::Languages=none -o Acquire::Retries=3 "${@:3}"
}

# know RELEASE: fetches the package lists of a release. Done anew by each preparation, because an archive
# drops the files that an old list names.
know() {
    local lists=$cache/apt/$1 keys=/usr/share/keyrings/debian-archive-keyring.gpg uri
    uri=$(archive)
    [ -n "$uri" ] || die "apt on this machine knows no Debian archive (apt-get update done? is this Debian?)"
    [ -e "$keys" ] || need debian-archive-keyring debian-archive-keyring
    mkdir -p "$lists/lists/partial" "$lists/archives/partial"
    echo "deb [signed-by=$keys] $uri $1 main" >"$lists/sources.list"
    apt_in "$1" apt-get update >"$cache/apt.log" 2>&1 || die "no package lists of $1, see $cache/apt.log"
}

# depends RELEASE PACKAGE: the packages that it directly depends on.
depends() {
    apt_in "$1" apt-cache depends --important "$2" | sed -n 's/^ *|\?\(Pre\)\?Depends: \([^<]*\)$/\2/p'
}

# closure RELEASE PACKAGE: the package and all that it needs to run.
closure() {
    apt_in "$1" apt-cache depends --recurse --important "$2" | grep '^[a-z0-9]'
}

# version RELEASE PACKAGE
version() {
    apt_in "$1" apt-cache show --no-all-versions "$2" | sed -n 's/^Version: //p'
}

# unpack RELEASE FOLDER PACKAGE...: downloads the packages and unpacks them, runs none of their scripts.
unpack() {
    local release=$1 folder=$2 debs package
    shift 2
    mkdir -p "$folder" || exit 125
    debs=$(mktemp -d "$cache/debs.XXXXXX") || exit 125
    (cd "$debs" && apt_in "$release" apt-get download "$@") >"$cache/apt.log" 2>&1 ||
        { rm -rf "$debs"; die "cannot download $* of $release, see $cache/apt.log"; }
    for package in "$debs"/*.deb; do
        dpkg-deb -x "$package" "$folder" || { rm -rf "$debs"; die "cannot unpack $package"; }
    done
    rm -rf "$debs"
}

# program RELEASE PACKAGE PATH: prints a script that runs the PATH of the package with the C library and all
# other libraries of its own release, whatever those of the machine are.
program() {
    local root=$cache/$2-$1
    if [ ! -e "$root/start" ]; then
        say "fetching $2 of $1"
        know "$1"
        rm -rf "$root" "$root.new"
        unpack "$1" "$root.new" $(closure "$1" "$2")
        [ -x "$root.new/$3" ] || die "$2 of $1 has no $3"
        {
            echo '#!/bin/sh'
            echo "root=$(printf %q "$root")"
            echo 'libraries=$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu'
            echo 'for loader in "$root/usr/lib64" "$root/lib64"; do'
            echo '    loader=$loader/ld-linux-x86-64.so.2'
            echo "    [ ! -e \"\$loader\" ] || exec \"\$loader\" --library-path \"\$libraries\" \"\$root/$3\" \"\$@\""
            echo 'done'
            echo 'echo "no program loader in $root" >&2; exit 127'
        } >"$root.new/start"
        chmod 755 "$root.new/start"
        mv "$root.new" "$root"
        "$root/start" --version >/dev/null || { mv "$root/start" "$root/start.bad"; die "$2 of $1 does not start on this machine"; }
    fi
    echo "$root/start"
}
