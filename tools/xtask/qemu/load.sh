# Writes /dev/vda and compares until the host says stop.
. /common.sh
load run /dev/vda until=/tmp/stop &
load=$!
await_word stop
touch /tmp/stop
wait $load || fail "the load"
echo "GUEST PASSED"
