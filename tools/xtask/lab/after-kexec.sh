# In the second kernel: both disks are as the first one left them, take new data, and nothing of what the first had in flight
# turns up in this one's memory.
echo "the second kernel, up $(cut -d. -f1 /proc/uptime) s"
yes "the first kernel's" | dd of=/expected bs=64k count=128 iflag=fullblock 2>/dev/null
for disk in vda vdb; do
  dd if=/dev/$disk of=/copy bs=64k count=128 iflag=direct 2>/dev/null && cmp /expected /copy || { echo "GUEST FAILED: $disk"; exit 1; }
done
. /media.sh
if [ -e /proc/vmcore ]; then
  # The memory of the kernel that panicked, kept on a disk, as it is done in earnest.
  dd if=/proc/vmcore of=/dev/vdb bs=64k count=128 conv=fsync 2>/dev/null || fail "no vmcore"
  [ "$(dd if=/dev/vdb bs=1 skip=1 count=3 2>/dev/null)" = ELF ] || fail "the vmcore on vdb is none"
  echo "vmcore kept"
fi
echo "GUEST PASSED"
