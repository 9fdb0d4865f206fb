#!/bin/busybox sh
# PID 1 of an L2 guest: loads modules, then does what /run says.
/bin/busybox --install /bin
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
for m in $(cat /modules/order); do insmod /modules/$m || echo "insmod $m: failed"; done
if [ -e /switch-root ]; then . /switch-root; else sh /run; echo "L2 EXIT $?"; fi
sync
poweroff -f
