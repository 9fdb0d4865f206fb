#!/bin/busybox sh
# PID 1 of a guest whose root is /dev/vda: fills a file there, has the page cache forget it, and reads it back from the disk.
/bin/busybox --install -s /bin
export PATH=/bin

finish() {
  echo "GUEST $1"
  mount -o remount,ro /
  poweroff -f
}

sum() {
  sha256sum /data | cut -d' ' -f1
}

echo "root: $(grep ' / ' /proc/mounts | cut -d' ' -f1,3)"
dd if=/dev/urandom of=/data bs=1M count=64 conv=fsync 2>/dev/null || finish "FAILED: cannot write on the root"
written=$(sum)
sync
echo 3 >/proc/sys/vm/drop_caches
[ "$(sum)" = "$written" ] || finish "FAILED: the root reads other than written"
echo "sum on root: $written"
finish PASSED
