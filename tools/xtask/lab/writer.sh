# Leaves a file on the disk, says so, and goes on writing until the machine is taken away.
mkdir -p /mnt
mount -t ext4 /dev/vda /mnt || exit 1
dd if=/dev/urandom of=/mnt/data bs=1M count=8 conv=fsync 2>/dev/null
echo "sum on vda: $(sha256sum /mnt/data | cut -d' ' -f1)"
number=0
while :; do
  dd if=/dev/zero of=/mnt/more bs=1M count=16 conv=fsync 2>/dev/null
  number=$((number + 1)); [ $number = 2 ] && echo "WRITING"
done
