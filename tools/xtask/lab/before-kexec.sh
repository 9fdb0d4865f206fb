# Leaves for another kernel, at once or by a panic, while many reads of a slow /dev/vda are in flight: their buffers are the
# other kernel's memory then.
. /media.sh
how=$(cat /how)
# To be told from anything that a kernel has in its memory.
yes "the first kernel's" | dd of=/random bs=64k count=128 iflag=fullblock 2>/dev/null
for disk in vda vdb; do dd if=/random of=/dev/$disk bs=64k oflag=direct 2>/dev/null || fail "no write on $disk"; done
in_flight() { awk '{ print $1 }' /sys/block/vda/inflight; }
is_slow() {
  reads /dev/vda 0 & sleep 1; [ "$(in_flight)" -gt 0 ]
}
are_many() { [ "$(in_flight)" -ge 48 ]; }
[ "$how" = now ] || kexec crash /kernel /second "$(cat /proc/cmdline) maxcpus=1" || fail "no kernel for a crash"
echo "ready for a slow medium"
await "the medium is slow" is_slow
for number in $(seq 0 63); do dd if=/dev/vda of=/dev/null bs=128k skip=$number count=1 iflag=direct 2>/dev/null & done
await "many reads are in flight" are_many
echo "leaving with $(in_flight) reads in flight"
if [ "$how" = now ]; then
  kexec now /kernel /second "$(cat /proc/cmdline)"
else
  echo c >/proc/sysrq-trigger
fi
fail "still here"
