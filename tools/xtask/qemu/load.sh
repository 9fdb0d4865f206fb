# Writes /dev/vda and compares until the host says stop.
. /common.sh
load_until_stop /dev/vda
echo "GUEST PASSED"
