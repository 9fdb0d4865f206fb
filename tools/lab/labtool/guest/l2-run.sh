echo "L2 UP $(uname -r) $(cut -d' ' -f1 /proc/uptime) s"
