#!/bin/sh
# Runs a shell script on a Debian as it is, with network, in namespaces of its own. What it does there is gone afterwards,
# except what it puts into /srv/kept.
#
#   in_debian.sh ROOT WORK KEPT SCRIPT
#
#   ROOT    the file system of the Debian; only read
#   WORK    a directory for what is gone afterwards
#   KEPT    a directory that is there, /srv/kept for the script
#   SCRIPT  for sh, as root
set -eu
trap 'rm -rf "$work"' EXIT
root=$1 work=$2 kept=$3 script=$4
export root work kept script
rm -rf "$work"
mkdir -p "$work"

# shellcheck disable=SC2016 # expanded by the other shell
unshare --mount --pid --fork --kill-child sh -euc '
    mount --make-rprivate /
    cd "$work"
    mkdir upper work root
    mount -t overlay overlay -o "lowerdir=$root,upperdir=upper,workdir=work" root
    mount -t proc proc root/proc
    mount -t tmpfs tmpfs root/tmp
    for device in null zero full random urandom tty; do
        test -e root/dev/$device || : >root/dev/$device
        mount --bind /dev/$device root/dev/$device
    done
    cp /etc/resolv.conf root/etc/resolv.conf
    # Not on the overlay: an overlay cannot be over it.
    mkdir root/srv/kept
    mount --bind "$kept" root/srv/kept
    exec chroot root env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        sh -euc "$script"
'
