# shellcheck shell=bash
# What the scripts beside this file and .ci/run share. It is sourced, and does nothing by itself.

# Ends the script with one line that names it, what is wrong and what to do.
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Prints those of the named Debian packages that are not installed.
missing_packages() {
    local package
    for package in "$@"; do
        if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
            printf '%s\n' "$package"
        fi
    done
}

# Installs the named Debian packages, as root; with no names it does nothing.
#
# No package may start a service: there may be no service manager to start it, and a daemon of zfs-fuse
# would outlive the tests that it was installed for. `--no-remove` protects a host with OpenZFS, whose
# tools Debian would otherwise remove in favour of zfs-fuse. A package is replaced by an earlier version only where
# its name says so (`NAME/RELEASE`).
install_packages() (
    if [ $# -eq 0 ]; then
        return 0
    fi
    command -v apt-get >/dev/null || die "no apt-get here: install these by hand, then try again: $*"
    [ "$(id -u)" -eq 0 ] || die "missing Debian packages; install them with: sudo apt-get install $*"

    echo "installing $*"
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod 755 /usr/sbin/policy-rc.d
    fi
    export DEBIAN_FRONTEND=noninteractive
    # What apt-get says fills screens, and is worth them only when it fails.
    local said
    said=$(
        exec 2>&1 </dev/null
        apt-get -q -o DPkg::Lock::Timeout=300 update &&
            apt-get -q -o DPkg::Lock::Timeout=300 install --yes --no-install-recommends --no-remove \
            --allow-downgrades "$@"
    ) || die "apt-get failed: $said"
)

# Ends the script unless FUSE can be used, which neither a package nor a script of ours can bring.
require_fuse() {
    [ -c /dev/fuse ] ||
        die "/dev/fuse is missing: run 'modprobe fuse', or start the container with --device /dev/fuse"
}
