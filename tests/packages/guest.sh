#!/bin/sh
# Boots a guest: a Debian with its own kernel, emulated, so that it is the same on every machine. What is written to the
# standard input is read by a shell there, what that says comes out here. It runs until it is killed.
#
#   guest.sh ROOT INSTALLED DIRECTORY
#
#   ROOT       the file system of the distribution, with a kernel; only read
#   INSTALLED  what is put on it; only read
#   DIRECTORY  for its disk, and for console.log: what the kernel and systemd say
set -eu
root=$1 installed=$2 directory=$3

# In namespaces of its own, so that nothing stays mounted.
# shellcheck disable=SC2016 # expanded by the other shell
root=$root installed=$installed directory=$directory unshare --mount sh -euc '
    mount --make-rprivate /
    mount -t tmpfs tmpfs /mnt
    mkdir /mnt/upper /mnt/work /mnt/root
    mount -t overlay overlay -o "lowerdir=$installed:$root,upperdir=/mnt/upper,workdir=/mnt/work" /mnt/root
    cd /mnt/root
    cp vmlinuz initrd.img "$directory"
    # What is not looked at there. Loading a hundred profiles for other programs takes a minute.
    rm -rf boot usr/share/locale usr/share/man usr/share/perl var/cache/apt var/lib/apt/lists
    find etc/apparmor.d -maxdepth 1 -type f -delete
    # It is not new: nothing is to be done first.
    touch etc/.updated var/.updated
    cat >etc/systemd/system/guest.service <<END
[Service]
StandardInput=file:/dev/ttyS1
StandardOutput=file:/dev/ttyS1
StandardError=file:/dev/ttyS1
ExecStart=sh -c "stty raw -echo; echo here it is; exec sh 2>/dev/null"
END
    truncate --size=4G "$directory/root.img"
    mke2fs -q -t ext4 -d . "$directory/root.img"
' >&2

cd "$directory"
# (-cx16: with that instruction, older emulators do not emulate this kernel well.)
exec setpriv --pdeathsig KILL qemu-system-x86_64 -accel tcg -cpu Nehalem,-cx16 -smp 2 -m 1024 \
    -nodefaults -display none -no-reboot -serial file:console.log -serial stdio \
    -kernel vmlinuz -initrd initrd.img -drive file=root.img,format=raw,if=virtio \
    -append "root=/dev/vda rw console=ttyS0 panic=-1 systemd.unit=guest.service systemd.show_status=no"
