#!/bin/sh
# Boots a machine: systemd in a container. It runs until the standard input ends, for whatever reason (so also when the
# tests are killed), and then nothing is left of it: no process, no mount, no control group. Killed itself, it leaves
# nothing but empty control groups.
#
#   machine.sh NAME ROOT INSTALLED
#
#   NAME       of its control group
#   ROOT       the file system of the distribution; only read
#   INSTALLED  what is installed on it; only read
set -eu
name=$1 root=$2 installed=$3

# Two machines need two control groups: below each, systemd thinks that it owns everything.
groups=$(sed -n 's|^0::/*||p' /proc/self/cgroup)
if test -e /sys/fs/cgroup/cgroup.procs; then
    groups=/sys/fs/cgroup/$groups/$name
else
    systemd=$(sed -n 's|^[0-9]*:name=systemd:/*||p' /proc/self/cgroup)
    groups="/sys/fs/cgroup/unified/$groups/$name /sys/fs/cgroup/systemd/$systemd/$name"
fi
# shellcheck disable=SC2086 # two words
mkdir -p $groups

inside='
    set -eu
    exec 2>&3 3>&-
    root=$1 installed=$2
    shift 2
    for group; do echo 0 >"$group/cgroup.procs"; done
    mount --make-rprivate /
    mount -t tmpfs tmpfs /mnt
    # systemd-nspawn leaves its locks here.
    mount -t tmpfs tmpfs /run
    mkdir /mnt/upper /mnt/work /mnt/root
    mount -t overlay overlay -o "lowerdir=$installed:$root,upperdir=/mnt/upper,workdir=/mnt/work" /mnt/root
    export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
    exec systemd-nspawn --quiet --directory=/mnt/root --machine=machine --register=no --keep-unit --private-network \
        --console=pipe --boot
'
# The first process of a namespace takes all others of it along when it ends. It ends with unshare, and that with us.
# (unshare itself is not listened to: it complains about its signals when its child was killed.)
# shellcheck disable=SC2086 # two words
setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --mount-proc \
    sh -c "$inside" sh "$root" "$installed" $groups </dev/null 3>&2 2>/dev/null &
unshare=$!

# Until there is no more input.
while read -r _; do :; done

# The first process is the only child of unshare. When both have been waited for, all other processes have ended, too.
first=$(cat "/proc/$unshare/task/$unshare/children" 2>/dev/null) || true
kill -KILL ${first:-$unshare} 2>/dev/null || true
wait "$unshare" 2>/dev/null || true
# shellcheck disable=SC2086 # two words
find $groups -depth -type d -exec rmdir {} +
