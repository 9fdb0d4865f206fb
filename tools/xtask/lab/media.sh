# Sourced by the scripts of guests whose /dev/vda is a medium that misbehaves and whose /dev/vdb is a good one.
. /common.sh

# Reads 64 KiB of a disk at a number of such pieces, or so many bytes at so many sectors, past the page cache.
reads() {
  dd if=$1 of=/piece bs=64k skip=$2 count=1 iflag=direct 2>/dev/null
}
reads_sectors() {
  dd if=/dev/vda of=/piece bs=512 skip=$1 count=$2 iflag=direct 2>/dev/null
}
fails() {
  ! "$@"
}
writes() {
  dd if=/random of=$1 bs=64k skip=$2 seek=$2 count=1 oflag=direct conv=notrunc 2>/dev/null
}

# Whether the first 4 MiB of a disk are as they were written.
is_whole() {
  dd if=$1 of=/copy bs=64k count=64 iflag=direct 2>/dev/null && cmp /random /copy
}
fill() {
  dd if=/random of=$1 bs=64k count=64 oflag=direct 2>/dev/null
}

dd if=/dev/urandom of=/random bs=64k count=64 2>/dev/null
for disk in vda vdb; do
  fill /dev/$disk && is_whole /dev/$disk || fail "$disk at first"
done
