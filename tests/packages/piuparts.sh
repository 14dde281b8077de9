#!/bin/sh
# Has piuparts install, upgrade, remove and purge the package for Debian in a chroot, without a network: the older version comes
# from a repository made for it. Fails if anything is left, or was done that a package must not do.
#
#   piuparts.sh ROOT INSTALLED BASE
#
#   ROOT       a file system with piuparts; only read
#   INSTALLED  what is put on it, with the packages; only read
#   BASE       the file system to install into; only read
set -eu

# In namespaces of its own, so that nothing stays mounted, and nothing goes on.
# shellcheck disable=SC2016 # expanded by the other shell
root=$1 installed=$2 base=$3 exec unshare --mount --net --pid --fork --kill-child sh -euc '
    mount --make-rprivate /
    mount -t tmpfs tmpfs /mnt
    cd /mnt
    mkdir upper work root base-upper base-work
    mount -t overlay overlay -o "lowerdir=$installed:$root,upperdir=upper,workdir=work" root
    mkdir root/srv/base
    mount -t overlay overlay -o "lowerdir=$base,upperdir=base-upper,workdir=base-work" root/srv/base
    mount -t proc proc root/proc
    for device in null zero full random urandom tty; do
        test -e root/dev/$device || : >root/dev/$device
        mount --bind /dev/$device root/dev/$device
    done

    : >root/etc/resolv.conf
    mkdir root/srv/repository
    cp root/root/packages/older.deb root/srv/repository
    echo "deb [trusted=yes] file:/srv/repository ./" >root/srv/base/etc/apt/sources.list
    rm -rf root/srv/base/etc/apt/sources.list.d/*
    exec chroot root env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 sh -euc "
        cd /srv/repository
        dpkg-scanpackages . >Packages 2>/dev/null
        cp -r /srv/repository /srv/base/srv
        piuparts --existing-chroot=/srv/base --keep-sources-list --distribution=trixie \
            --warn-on-others /root/packages/echoed.deb"
'
