# Reboots once: a word on the disk tells the second boot from the first.
if [ "$(head -c 6 /dev/vda)" = BOOTED ]; then
  echo "boot 2: $(head -c 6 /dev/vda)"
  exit 0
fi
printf BOOTED | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null
echo "boot 1"
reboot -f
sleep 60
