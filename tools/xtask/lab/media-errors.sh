# /dev/vda gets a bad sector, fails as a whole, fails writes, hangs and is slow, and is good again after each. What it gives is
# never other than what was written, and /dev/vdb is served all the time.
. /media.sh

echo "ready for errors"
await "a sector is bad" fails reads_sectors 4096 8
reads_sectors 4088 8 && reads_sectors 4104 8 || fail "the sectors beside the bad one"
fails reads /dev/vda 32 || fail "a read over the bad sector is good"
is_whole /dev/vdb || fail "vdb beside a bad sector"
echo "a bad sector"
await "everything fails" fails reads /dev/vda 0
fails writes /dev/vda 0 || fail "a write to a medium that fails is good"
is_whole /dev/vdb || fail "vdb beside a medium that fails"
echo "everything fails"
await "the medium is back" reads /dev/vda 0
is_whole /dev/vda || fail "vda after it came back"

echo "ready for writes that fail"
await "writes fail" fails writes /dev/vda 0
is_whole /dev/vda || fail "vda while writes fail"
echo "writes fail"
await "writes are good again" fill /dev/vda
is_whole /dev/vda || fail "vda after its writes failed"

# Reads on until one takes long: then it hangs.
while [ ! -e /enough ]; do reads /dev/vda 0 || touch /failed; echo >>/turns; done &
turns() { wc -c </turns; }
stands_still() {
  before=$(turns); sleep 2; [ "$(turns)" = "$before" ]
}
echo "ready for a medium that hangs"
await "the medium hangs" stands_still
fill /dev/vdb && is_whole /dev/vdb || fail "vdb beside a medium that hangs"
stands_still || fail "the medium hangs no more"
echo "served beside a medium that hangs"
goes_on() { fails stands_still; }
await "the medium is back" goes_on
touch /enough
wait
[ ! -e /failed ] || fail "a read of a medium that hung has failed"
is_whole /dev/vda || fail "vda after it hung"

now() { cut -d' ' -f1 /proc/uptime | tr -d .; }
is_slow() {
  start=$(now); reads /dev/vda 0 || fail "a slow read"; [ $(($(now) - start)) -ge 150 ]
}
echo "ready for a slow medium"
await "the medium is slow" is_slow
dd if=/dev/vda of=/copy bs=64k count=64 iflag=direct 2>/dev/null &
start=$(now)
is_whole /dev/vdb || fail "vdb beside a slow medium"
[ $(($(now) - start)) -lt 6000 ] || fail "vdb is as slow as the medium beside it"
kill %1 2>/dev/null
echo "GUEST PASSED"
