# Runs the command given on a disk of the device mapper, to which things happen as the guest gets on.
. "${0%/*}/host.sh"
modprobe dm-mod && modprobe dm-flakey && modprobe dm-delay || exit 1
sectors=$(blockdev --getsz /dev/vda)
good="0 $sectors linear /dev/vda 0"
dmsetup create bad --table "$good" || exit 1
ln -s /dev/mapper/bad /run/bad
start "$@"
await_line "ready for errors"
reload bad "0 4096 linear /dev/vda 0
4096 8 error
4104 $((sectors - 4104)) linear /dev/vda 4104"
await_line "a bad sector"
reload bad "0 $sectors error"
await_line "everything fails"
reload bad "$good"
await_line "ready for writes that fail"
reload bad "0 $sectors flakey /dev/vda 0 0 600 1 error_writes"
await_line "writes fail"
reload bad "$good"
await_line "ready for a medium that hangs"
dmsetup suspend --noflush --nolockfs bad
await_line "served beside a medium that hangs"
dmsetup resume bad
await_line "ready for a slow medium"
reload bad "0 $sectors delay /dev/vda 0 1500"
finish
