# /dev/vda is on a tmpfs and /dev/vdb on ext4, both of them full before all of the disk was written. What was written is there,
# and after room was made the rest can be written too.
. /common.sh
dd if=/dev/urandom of=/random bs=64k count=192 2>/dev/null
# Writes pieces until one fails, and sets how many were good.
fill() {
  good=0
  while [ $good -lt 192 ] && dd if=/random of=$1 bs=64k skip=$good seek=$good count=1 oflag=direct 2>/dev/null; do
    good=$((good + 1))
  done
}
# Whether that many pieces are as they were written.
are_whole() {
  dd if=$1 of=/copy bs=64k count=$2 iflag=direct 2>/dev/null && cmp -n $(($2 * 65536)) /random /copy
}

for disk in vda vdb; do
  fill /dev/$disk
  [ $good -gt 16 ] && [ $good -lt 192 ] || fail "$disk took $good pieces of 192"
  are_whole /dev/$disk $good || fail "$disk gives other than was written before it was full"
  # Its old blocks have their room.
  dd if=/random of=/dev/$disk bs=64k count=16 oflag=direct conv=fsync 2>/dev/null || fail "no rewrite on $disk while it is full"
  eval "$disk=$good"
done
echo "ready for room"
for disk in vda vdb; do
  tries=600
  until fill /dev/$disk && [ $good = 192 ]; do
    tries=$((tries - 1)); [ $tries -gt 0 ] || fail "$disk takes nothing more though there is room"
    usleep 100000
  done
  are_whole /dev/$disk 192 || fail "$disk gives other than was written after it was full"
done
echo "GUEST PASSED"
