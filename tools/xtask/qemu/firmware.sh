# On a disk that a firmware has booted from: checks what the boot before has left behind the partition, reads the partition
# itself, adds a round, and reboots or ends, as the host says.
. /common.sh
behind=offset=41943040
load check /dev/vda $behind || fail "the check"
echo "sum of the partition: $(dd if=/dev/vda bs=1M count=40 2>/dev/null | sha256sum | cut -d' ' -f1)"
load run /dev/vda $behind rounds=1 || fail "the load"
read -r word
[ "$word" = reboot ] && { reboot -f; sleep 60; }
echo "GUEST PASSED"
