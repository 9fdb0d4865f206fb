# Runs the command given, and makes its first disk slow when the guest is ready for that, until the second kernel is there.
. "${0%/*}/host.sh"
modprobe dm-mod && modprobe dm-delay || exit 1
sectors=$(blockdev --getsz /dev/vda)
dmsetup create bad --table "0 $sectors linear /dev/vda 0" || exit 1
ln -s /dev/mapper/bad /run/bad
start "$@"
await_line "ready for a slow medium"
reload bad "0 $sectors delay /dev/vda 0 6000"
await_line "the second kernel"
reload bad "0 $sectors linear /dev/vda 0"
finish
