# /dev/vda has ten bad sectors and then goes for good; /dev/vdb is served all the time.
. /media.sh
reads_sectors 19992 8 && reads_sectors 20016 8 || fail "the sectors beside the bad ones"
fails reads_sectors 20000 8 || fail "a read of bad sectors is good"
reads_sectors 19992 8 || fail "a good sector after bad ones"
echo "bad sectors"
echo "ready for the end"
await "the disk is gone" fails reads /dev/vda 0
fails writes /dev/vda 0 || fail "a write to a disk that is gone is good"
fill /dev/vdb && is_whole /dev/vdb || fail "vdb beside a disk that is gone"
fails reads /dev/vda 1 || fail "a read of a disk that is gone is good"
echo "GUEST PASSED"
