# Reads and writes /dev/vda from each processor, each of which has a queue of its own, and compares.
echo "queues: $(ls /sys/block/vda/mq | wc -l)"
dd if=/dev/urandom of=/random bs=64k count=16 2>/dev/null
for processor in 0 1 2 3; do
  # In the foreground of its processor, past the page cache: nobody else submits these requests.
  taskset -c $processor dd if=/random of=/dev/vda bs=64k seek=$((processor * 16)) oflag=direct 2>/dev/null || exit 1
  taskset -c $processor dd if=/dev/vda of=/copy bs=64k skip=$((processor * 16)) count=16 iflag=direct 2>/dev/null || exit 1
  cmp /random /copy || exit 1
done
# All at once.
for processor in 0 1 2 3; do
  taskset -c $processor dd if=/dev/vda of=/copy$processor bs=64k count=64 iflag=direct 2>/dev/null &
done
wait
for processor in 1 2 3; do cmp /copy0 /copy$processor || exit 1; done
echo "GUEST PASSED"
