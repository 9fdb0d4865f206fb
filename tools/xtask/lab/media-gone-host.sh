# Runs the command given on a SCSI disk with bad sectors, and takes it away when the guest is ready for that.
. "${0%/*}/host.sh"
# Reads of ten sectors from here on are medium errors (Linux: drivers/scsi/scsi_debug.c, SDEBUG_OPT_MEDIUM_ERR).
modprobe sd_mod && modprobe scsi_debug dev_size_mb=16 opts=2 medium_error_start=20000 medium_error_count=10 || exit 1
tries=100
until disk=$(ls /sys/bus/pseudo/drivers/scsi_debug/adapter0/host*/target*/*:0/block 2>/dev/null) && [ -b "/dev/$disk" ]; do
  tries=$((tries - 1)); [ $tries -gt 0 ] || { echo "no disk of scsi_debug"; exit 1; }
  sleep 0.1
done
ln -s "/dev/$disk" /run/bad
start "$@"
await_line "ready for the end"
echo 1 >"/sys/block/$disk/device/delete"
finish
