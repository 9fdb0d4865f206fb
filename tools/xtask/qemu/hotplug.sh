# While /dev/vda is busy /dev/vdb comes and goes twice.
. /common.sh
load run /dev/vda until=/tmp/stop &
load=$!
for turn in 1 2; do
  await "/dev/vdb is there" [ -b /dev/vdb ]
  load check /dev/vdb || fail "the check of /dev/vdb in turn $turn"
  load run /dev/vdb rounds=2 || fail "the load of /dev/vdb in turn $turn"
  await "/dev/vdb is gone" [ ! -e /dev/vdb ]
  echo "vdb is gone"
done
await_word stop
touch /tmp/stop
wait $load || fail "the load of /dev/vda"
echo "GUEST PASSED"
