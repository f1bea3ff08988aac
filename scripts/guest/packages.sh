# shellcheck shell=bash
# Debian packages for guests, for scripts/make-machine and scripts/test-kernel to source: resolved
# and fetched by apt with a state of its own, and unpacked. Nothing of this machine's dpkg and apt
# is changed, and no root is needed.
#
# Everything is kept in ${XDG_CACHE_HOME:-~/.cache}/crewboss/packages. The lists of packages are
# fetched once: what was made one day is made the same the next, without a network, until somebody
# asks for newer ones or a package has gone.
#
# Used are the mirror, the proxy and the release of this machine's own apt, if it is a Debian; else,
# or to have others:
#   CREWBOSS_MIRROR=URL CREWBOSS_RELEASE=CODENAME

CACHE=${XDG_CACHE_HOME:-${HOME:?}/.cache}/crewboss
PACKAGES=$CACHE/packages
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
LOCK_WITHIN=600       # seconds that another one may take

# What is in a guest by other means, or of no use there: busybox has the programs, and nothing is
# ever configured. libnsl-dev and rpcsvc-proto (NIS and Sun RPC) would bring Kerberos and OpenSSL
# along with every C library.
PROVIDED="dpkg tar coreutils debianutils sed passwd adduser debconf udev kmod initramfs-tools linux-base libnsl-dev rpcsvc-proto"

die() { echo "${0##*/}: $*" >&2; exit 1; }

cleanup() { rm -rf "$scratch"; }

need_tools() {
    local tool missing=
    for tool; do
        command -v "$tool" >/dev/null || missing="$missing $tool"
    done
    [ -z "$missing" ] || die "missing:$missing; scripts/setup installs them"
}

# The address of the mirror that this machine's own apt uses: the first one that serves a release,
# not its updates.
packages_mirror() {
    { cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null || true; } |
        sed -nE -e 's/^URIs: *([^ ]*debian\/?)( .*)?$/\1/p' \
            -e 's/^deb +(\[[^]]*\] +)?([^ ]+debian\/?) +[a-z]+ +main.*$/\2/p' | head -n 1
}

# apt reads the file in APT_CONFIG before the directories of its configuration, so these can be
# turned off in it. What it has been told of proxies is kept.
packages_configure() { # packages_configure MIRROR RELEASE
    local package acquire
    acquire=$(apt-config dump | grep -iE '^Acquire::(http|https|ftp|Retries|ForceIPv)' || true)
    mkdir -p "$PACKAGES/lists/partial" "$PACKAGES/cache/archives/partial" "$PACKAGES/state"
    cat >"$PACKAGES/apt.conf" <<CONF
Dir::Etc { main "/dev/null"; parts "/dev/null"; preferences "/dev/null"; preferencesparts "/dev/null"; };
Dir::Etc { sourcelist "$PACKAGES/sources.list"; sourceparts "/dev/null"; };
Dir::State "$PACKAGES/state";
Dir::State { lists "$PACKAGES/lists"; status "$PACKAGES/status"; };
Dir::Cache "$PACKAGES/cache";
APT { Architecture "amd64"; Architectures { "amd64"; }; Install-Recommends "false"; Sandbox::User ""; };
APT::Keep-Downloaded-Packages "true";
APT::Update::Error-Mode "any";
Acquire { Languages "none"; GzipIndexes "true"; };
$acquire
CONF
    for package in $PROVIDED; do
        printf '%s\n' "Package: $package" "Status: install ok installed" "Architecture: amd64" "Multi-Arch: foreign" \
            "Version: 9999" "Maintainer: nobody <nobody@example.org>" "Description: not needed in a guest" ""
    done >"$PACKAGES/status"
    echo "deb [signed-by=$KEYRING] $1 $2 main" >"$PACKAGES/sources.list"
    export APT_CONFIG=$PACKAGES/apt.conf
}

# Prepares everything; the lock is held until this process ends. A directory for what is being
# unpacked is in $scratch, and goes with this process. What one that was killed has left is removed:
# nobody else is here.
packages_begin() { # packages_begin [--update]
    local mirror release
    need_tools apt-get apt-config dpkg-deb flock tar
    [ "$(dpkg --print-architecture)" = amd64 ] || die "only amd64 guests can be made so far, on an amd64 machine"
    [ -e "$KEYRING" ] || die "$KEYRING is missing: install debian-archive-keyring"
    mirror=${CREWBOSS_MIRROR:-$(packages_mirror)}
    [ -n "$mirror" ] || die "apt's sources name no mirror of Debian; set CREWBOSS_MIRROR=URL"
    release=${CREWBOSS_RELEASE:-$(. /etc/os-release && [ "${ID:-}" = debian ] && echo "${VERSION_CODENAME:-}" || true)}
    [ -n "$release" ] || die "cannot tell which release of Debian this is; set CREWBOSS_RELEASE=CODENAME"
    mkdir -p "$PACKAGES" || die "cannot make $PACKAGES"
    exec 9>"$PACKAGES/lock"
    flock -w "$LOCK_WITHIN" 9 || die "another one has used $PACKAGES for $LOCK_WITHIN s"
    rm -rf "$PACKAGES"/scratch.*
    scratch=$(mktemp -d "$PACKAGES/scratch.XXXXXX") || die "cannot write in $PACKAGES"
    chmod 755 "$scratch"
    trap cleanup EXIT
    trap 'exit 130' INT TERM HUP
    packages_configure "$mirror" "$release"
    if [ "${1:-}" = --update ] || [ -z "$(find "$PACKAGES/lists" -maxdepth 1 -name "*_${release}_main_binary-amd64_*")" ]; then
        packages_update
    fi
}

packages_update() {
    echo "${0##*/}: fetching lists of packages" >&2
    apt-get -qq update 2>"$scratch/error" || die "cannot fetch Debian's lists of packages: $(packages_error)
hint: is there a network? CREWBOSS_MIRROR=URL takes another mirror"
    apt-get -qq autoclean >/dev/null 2>&1 || true
}

packages_error() { sed -nE 's/^[EW]: *//p' "$scratch/error" | head -n 1; }

# Fetches packages with all that they need, as far as they are not there, and prints their files.
packages_fetch() { # packages_fetch PACKAGE...
    # An old list names what the mirror no longer has.
    packages_try "$@" || { packages_update && packages_try "$@"; } || die "cannot fetch $*: $(packages_error)"
    while read -r file; do echo "$PACKAGES/cache/archives/$file"; done <"$scratch/files"
}

packages_try() {
    # apt leaves out what is there already, so it is shown an empty directory.
    apt-get -qq -y --print-uris -o "Dir::Cache::archives=$scratch" install "$@" >"$scratch/uris" 2>"$scratch/error" || return
    sed -nE "s/^'[^']*' ([^ ]+) [0-9]+ .*/\1/p" "$scratch/uris" >"$scratch/files"
    (cd "$PACKAGES/cache/archives" && xargs ls >/dev/null 2>&1) <"$scratch/files" && return
    echo "${0##*/}: fetching packages" >&2
    apt-get -qq -y --download-only install "$@" >/dev/null 2>"$scratch/error"
}

# Unpacks packages, several at once, without running anything of them.
packages_unpack() { # packages_unpack DIRECTORY TAR-OPTION... : files from standard input
    # shellcheck disable=SC2016
    xargs -P "$(nproc)" -I FILE bash -o pipefail -c '
        file=$1 directory=$2
        shift 2
        dpkg-deb --fsys-tarfile "$file" | tar -x -C "$directory" --keep-directory-symlink --no-same-owner "$@"
    ' bash FILE "$@" || die "cannot unpack Debian packages in $1; is there room?"
}

# Debian's kernel for virtual machines, unpacked in $KERNEL: boot/vmlinuz-RELEASE and
# lib/modules/RELEASE. Its release is in $release, and what it was made of in $KERNEL/packages.
KERNEL=$CACHE/kernel
packages_kernel() {
    packages_fetch linux-image-cloud-amd64 >"$scratch/kernel.packages"
    if ! cmp -s "$scratch/kernel.packages" "$KERNEL/packages"; then
        mkdir "$scratch/kernel"
        packages_unpack "$scratch/kernel" --exclude=./usr <"$scratch/kernel.packages"
        cp "$scratch/kernel.packages" "$scratch/kernel/packages"
        rm -rf "$KERNEL"
        mv "$scratch/kernel" "$KERNEL"
    fi
    release=$(cd "$KERNEL/lib/modules" && ls)
    [ -e "$KERNEL/boot/vmlinuz-$release" ] || die "Debian's package has no kernel in $KERNEL/boot"
}
