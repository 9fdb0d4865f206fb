# Checks what is on the disk, then writes it and compares until the host says stop, or resets the machine.
. /common.sh
load check /dev/vda || fail "the check"
load_until_stop /dev/vda
echo "GUEST PASSED"
