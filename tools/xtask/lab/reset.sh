# Takes the drivers of /dev/vda (PCI) and /dev/vdb (MMIO) away and gives them back, idle and under load.

# Writes a new MiB of random bytes and reads it back, past the page cache.
write_and_read() {
  dd if=/dev/urandom of=/written bs=64k count=16 2>/dev/null
  dd if=/written of=$1 bs=64k oflag=direct 2>/dev/null || fail "cannot write $1 $2"
  same $1 "$2"
}

same() {
  dd if=$1 of=/read bs=64k count=16 iflag=direct 2>/dev/null || fail "cannot read $1 $2"
  cmp /written /read || fail "$1 reads other than written $2"
}

fail() {
  echo "GUEST FAILED: $*"
  exit 1
}

# Waits until a path is there, or for "!" until it is gone.
await() {
  tries=200
  until [ $1 -e $2 ]; do
    tries=$((tries - 1)); [ $tries -gt 0 ] || fail "no change of $*"
    usleep 50000
  done
}

# Unbinds and binds the device at a path of sysfs, which has the disk.
rebind() {
  name=${1##*/} driver=$(readlink -f $1/driver)
  echo $name >$driver/unbind || fail "unbind $name"
  await "" /sys/block; [ ! -e /sys/block/${2#/dev/} ] || fail "$2 outlived its driver"
  echo $name >$driver/bind || fail "bind $name"
  tries=200
  until [ -b $2 ]; do
    tries=$((tries - 1)); [ $tries -gt 0 ] || fail "$2 did not come back"
    usleep 50000
  done
}

for disk in /dev/vda /dev/vdb; do
  virtio=$(readlink -f /sys/block/${disk#/dev/}/device)
  echo "$disk: $(basename $(readlink $virtio/../driver))"
  write_and_read $disk "at first"
  rebind $virtio $disk
  same $disk "after its driver came back"
  write_and_read $disk "after its driver came back"
  rebind ${virtio%/*} $disk
  same $disk "after its bus driver came back"
  write_and_read $disk "after its bus driver came back"
  # Requests are in flight now; those that the reset takes away may fail, later ones may not.
  dd if=/dev/zero of=$disk bs=64k seek=16 count=512 oflag=direct 2>/dev/null &
  rebind $(readlink -f /sys/block/${disk#/dev/}/device) $disk
  wait
  same $disk "after a reset under load"
  write_and_read $disk "after a reset under load"
done
echo "GUEST PASSED"
