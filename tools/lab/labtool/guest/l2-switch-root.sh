# Sourced by PID 1 of an L2 guest: mounts the root that the kernel command line names and goes
# over to its init, as a distribution's initramfs does. On failure it says why and returns.
# Options: root= (a device, LABEL= or UUID=), rootfstype=, rootflags=, ro, rw, rootdelay=, init=.
root= type= flags= mode=ro wait=30 init=
for word in $(cat /proc/cmdline); do
  case $word in
    root=*) root=${word#root=} ;;
    rootfstype=*) type=${word#rootfstype=} ;;
    rootflags=*) flags=${word#rootflags=} ;;
    rootdelay=*) wait=${word#rootdelay=} ;;
    init=*) init=${word#init=} ;;
    ro | rw) mode=$word ;;
    --) break ;;
  esac
done

# Prints the device that root= names once it is there; fails after $wait seconds.
find_root() {
  tries=$((wait * 20))
  while :; do
    case $root in
      LABEL=* | UUID=*) device=$(findfs "$root" 2>/dev/null) ;;
      *) device=$root ;;
    esac
    [ -b "$device" ] && echo "$device" && return
    tries=$((tries - 1)); [ $tries -gt 0 ] || return 1
    usleep 50000
  done
}

switch_to_root() {
  [ -n "$root" ] || { echo "switch-root: no root= on the kernel command line"; return 1; }
  device=$(find_root) || {
    echo "switch-root: $root did not appear in $wait s; there are:" $(ls /sys/class/block)
    return 1
  }
  mkdir -p /newroot
  mount ${type:+-t $type} -o "$mode${flags:+,$flags}" "$device" /newroot || {
    echo "switch-root: cannot mount $device ($mode${type:+, $type})"; return 1
  }
  # The kernel's own list of places, if init= does not name one.
  for path in ${init:-/sbin/init /etc/init /bin/init /bin/sh}; do
    # A link in there is resolved from the new root, not from this one: any link will do.
    [ -x "/newroot$path" ] || [ -L "/newroot$path" ] || continue
    for each in dev proc sys; do mount --move /$each /newroot/$each; done
    exec switch_root /newroot "$path" "$@"
  done
  echo "switch-root: no ${init:-init} on $device"
  return 1
}
switch_to_root "$@"
