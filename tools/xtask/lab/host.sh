# Sourced by the scripts that run a guest in the lab and do something to it or its media meanwhile.
console=$(mktemp)
# There is no udev in the lab to make the nodes of devices and to tell dmsetup so.
export DM_DISABLE_UDEV=1

# Runs the command that is given, in the background. What it says is printed, and kept for the waits.
start() {
  "$@" >"$console" 2>&1 &
  pollux=$!
  tail -n +1 -s 0.2 --pid=$pollux -f "$console" &
  printing=$!
}

# Waits until the guest says this.
await_line() {
  deadline=$(($(date +%s) + 120))
  until grep -q "^$1" "$console"; do
    if ! kill -0 $pollux || [ $(date +%s) -gt $deadline ]; then
      wait $printing; echo "the guest did not come to say: $1"; exit 1
    fi
    sleep 0.1
  done
}

# Waits for the end of the command, and ends as it did.
finish() {
  wait $pollux
  status=$?
  wait $printing
  exit $status
}

# Gives a device of the device mapper another table. What is in flight goes by the old one.
reload() {
  dmsetup suspend "$1" && dmsetup load "$1" --table "$2" && dmsetup resume "$1" || { echo "no new table for $1: $2"; exit 1; }
}
