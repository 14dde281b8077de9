#!/bin/sh
# Runs the script that packages are built by on a Debian, with its own debootstrap: it makes the Debian to build in, and enters
# it. Takes the network, as debootstrap does.
#
#   debootstrap.sh ROOT SOURCES DIRECTORY
#
#   ROOT       the file system of the Debian; only read
#   SOURCES    with packaging/build
#   DIRECTORY  for what is made; gone at the end
set -eu
trap 'rm -rf "$3"' EXIT
rm -rf "$3"
mkdir -p "$3"

# In namespaces of its own, so that nothing stays mounted, and nothing goes on.
# shellcheck disable=SC2016 # expanded by the other shell
root=$1 sources=$2 directory=$3 unshare --mount --pid --fork --kill-child sh -euc '
    mount --make-rprivate /
    cd "$directory"
    mkdir upper work root cache dist
    mount -t overlay overlay -o "lowerdir=$root,upperdir=upper,workdir=work" root
    mount -t proc proc root/proc
    mount -t tmpfs tmpfs root/tmp
    for device in null zero full random urandom tty; do
        test -e root/dev/$device || : >root/dev/$device
        mount --bind /dev/$device root/dev/$device
    done
    cp /etc/resolv.conf root/etc/resolv.conf
    # Not on the overlay: an overlay cannot be over it.
    mkdir root/srv/cache root/srv/dist
    mount --bind cache root/srv/cache
    mount --bind dist root/srv/dist
    cp -r "$sources/packaging" root/srv
    chroot root env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        ECHOED_TEST_ROOTS=/srv/cache sh -euc "
            # By the lists that the Debian was made from, unless the mirror has gone on since.
            get() { apt-get -qq install -y --no-install-recommends debootstrap iproute2; }
            get || { apt-get -qq update && get; }
            debootstrap --version
            /srv/packaging/build nothing /srv/dist"
'
