# Checks what is on the disk, then writes it and compares until the host says stop, or resets the machine.
. /common.sh
load check /dev/vda || fail "the check"
load run /dev/vda until=/tmp/stop &
load=$!
await_word stop
touch /tmp/stop
wait $load || fail "the load"
echo "GUEST PASSED"
