# Sourced by the scripts of guests.
stty -echo

fail() {
  echo "GUEST FAILED: $*"
  exit 1
}

# Waits until the host sends this word.
await_word() {
  while read -r word; do
    [ "$word" = "$1" ] && return
  done
  fail "the console closed before the host said $1"
}

# Writes a disk and compares until the host says stop.
load_until_stop() {
  load run "$1" until=/tmp/stop &
  running=$!
  await_word stop
  touch /tmp/stop
  wait $running || fail "the load"
}

# Waits until a test comes true: await "what" [ TEST ].
await() {
  what=$1; shift
  tries=1200
  until "$@"; do
    tries=$((tries - 1)); [ $tries -gt 0 ] || fail "waited in vain until $what"
    usleep 50000
  done
}
