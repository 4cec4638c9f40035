#!/bin/sh
# The first program of a User Mode Linux: runs the check of the balloon; its output and its exit code are files of the host's folder.
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/shm && mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t hostfs none /mnt
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
cd /lab
uname -r > /mnt/release
python3 -u -m lab.inside.balloon /mnt/stop > /mnt/said 2>&1
echo $? > /mnt/code.new && mv /mnt/code.new /mnt/code
exec sleep 1000000
