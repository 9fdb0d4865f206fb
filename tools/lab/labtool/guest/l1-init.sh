#!/bin/busybox sh
# PID 1 of the lab VM (L1): loads modules, says READY, waits for the run's own script.
# The snapshot is taken while it waits: nothing before that depends on the run.
/bin/busybox --install /bin
export PATH=/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /dev/hugepages
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t hugetlbfs hugetlbfs /dev/hugepages
for m in $(cat /modules/order); do insmod /modules/$m; done
ip link set lo up
mount -t tmpfs -o size=80% tmpfs /rw
mkdir -p /rw/work /rw/upper/lab /rw/upper/out /rw/upper/usr/sbin /rw/upper/usr/lib/modules
ln -s /lab/bin/busybox /rw/upper/usr/sbin/modprobe
exec 3<>/dev/vport0p1
echo READY >&3
read -r word now <&3
date -s "@$now" >/dev/null
mount -a -T /fstab.9p && . /ctl/job
echo "EXIT 125" >&3
sleep 5
poweroff -f
