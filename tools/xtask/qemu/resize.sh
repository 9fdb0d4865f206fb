# While the 16 MiB of /dev/vda are busy it grows, and what is new is written and read too.
. /common.sh
sectors() {
  cat /sys/block/vda/size
}
grown() {
  [ "$(sectors)" != 32768 ]
}
echo "sectors: $(sectors)"
load run /dev/vda size=0x1000000 until=/tmp/stop &
load=$!
await "/dev/vda has grown" grown
echo "sectors: $(sectors)"
load run /dev/vda offset=0x1000000 rounds=1 || fail "the load of what is new"
await_word stop
touch /tmp/stop
wait $load || fail "the load of what was there before"
echo "GUEST PASSED"
