# Three rounds of writes, discards and zeroings on /dev/vda and /dev/vdb, each read back.
. /common.sh
for disk in vda vdb; do
  echo "$disk: $(ls /sys/block/$disk/mq | wc -l) queues"
  echo "$disk: $(cat /sys/block/$disk/queue/write_cache)"
  result=$(load run /dev/$disk workers=8 rounds=3 trim=1 | tail -n 1)
  echo "$disk: $result"
  case $result in
    "VERIFIED "*" 0 discards"*)
      [ "$(cat /sys/block/$disk/queue/discard_max_bytes)" = 0 ] || fail "$disk offers discards, but none was done"
      echo "$disk: no discards are offered" ;;
    "VERIFIED "*) ;;
    *) fail "$disk" ;;
  esac
done
echo "GUEST PASSED"
