#!/bin/busybox sh
# PID 1 of a guest whose root is /dev/vda and whose second disk is /dev/vdb: fills a file on each, has the page cache
# forget it, and reads it back from the disk.
/bin/busybox --install -s /bin
export PATH=/bin

finish() {
  echo "GUEST $1"
  mount -o remount,ro /
  poweroff -f
}

# Fills FOLDER/data with so many MiB of random bytes and prints their sum, once they are on the disk.
fill() {
  dd if=/dev/urandom of="$1/data" bs=1M count="$2" conv=fsync 2>/dev/null && sum "$1"
}

sum() {
  sha256sum "$1/data" | cut -d' ' -f1
}

echo "root: $(grep ' / ' /proc/mounts | cut -d' ' -f1,3)"
on_root=$(fill "" 16) || finish "FAILED: cannot write on the root"
mount -t ext4 /dev/vdb /mnt || finish "FAILED: cannot mount /dev/vdb"
on_second=$(fill /mnt 64) || finish "FAILED: cannot write on /dev/vdb"
sync
umount /mnt || finish "FAILED: cannot unmount /dev/vdb"
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 -o ro /dev/vdb /mnt || finish "FAILED: cannot mount /dev/vdb again"
[ "$(sum /mnt)" = "$on_second" ] || finish "FAILED: /dev/vdb reads other than written"
[ "$(sum "")" = "$on_root" ] || finish "FAILED: the root reads other than written"
umount /mnt
echo "sum on root: $on_root"
echo "sum on vdb: $on_second"
finish PASSED
