#!/bin/bash
# PID 1 of the demo's guest, a Debian system whose root is /dev/vda: writes files on both disks, has the page cache forget
# them, reads them back from the disks, says what it saw, and powers off.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin

finish() {
  echo "GUEST $1"
  mount -o remount,ro /
  echo o >/proc/sysrq-trigger
  sleep 60
}

sum() {
  sha256sum "$1" | cut -d' ' -f1
}

describe() {
  local disk=/sys/block/$1
  echo "  /dev/$1: $(($(cat $disk/size) / 2048)) MiB, $(ls $disk/mq | wc -l) queue," \
    "$(basename "$(readlink "$disk/device/driver")") by $(basename "$(readlink "$(readlink -f $disk/device)/../driver")"), $2"
}

# Writes FILE with so many MiB and prints its sum.
fill() {
  dd if=/dev/urandom of="$1" bs=1M count="$2" conv=fsync status=none && sum "$1"
}

echo "Debian $(cat /etc/debian_version), Linux $(uname -r), $(nproc) processor(s), up $(cut -d' ' -f1 /proc/uptime) s"
mke2fs -q -t ext4 /dev/vdb || finish "FAILED: cannot make a file system on /dev/vdb"
mount -t ext4 /dev/vdb /mnt || finish "FAILED: cannot mount /dev/vdb"
describe vda "$(findmnt -no FSTYPE,TARGET / | tr -s ' ')"
describe vdb "$(findmnt -no FSTYPE,TARGET /mnt | tr -s ' ')"
first=$(fill /root/data 64) || finish "FAILED: cannot write on /dev/vda"
second=$(fill /mnt/data 64) || finish "FAILED: cannot write on /dev/vdb"
echo "  64 MiB written on each and synced"
umount /mnt
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 -o ro /dev/vdb /mnt || finish "FAILED: cannot mount /dev/vdb again"
[ "$(sum /root/data)" = "$first" ] || finish "FAILED: /dev/vda reads other than written"
echo "  /dev/vda reads as written: SHA-256 $first"
[ "$(sum /mnt/data)" = "$second" ] || finish "FAILED: /dev/vdb reads other than written"
echo "  /dev/vdb reads as written: SHA-256 $second"
umount /mnt
finish PASSED
