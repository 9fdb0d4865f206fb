# Sourced by ../lab and ../rootfs: run_python MODULE ARGUMENT... runs a module's main().
#
# A bare Debian may have no python3, or python3-minimal, which lacks most of the standard library
# (lzma, ctypes, socket). Looking for one file of the full library costs no process.
run_python() {
  module=$1; shift
  for library in /usr/lib/python3.*/lzma.py; do :; done
  if [ ! -x /usr/bin/python3 ] || [ ! -e "$library" ]; then
    if [ "$(id -u)" != 0 ]; then
      echo "$program: not installed: python3. As root: apt-get install python3" >&2
      exit 125
    fi
    echo "$program: installing python3" >&2
    log=$(mktemp)
    if ! { apt-get -q update && DEBIAN_FRONTEND=noninteractive \
           apt-get -q -y --no-install-recommends install python3; } >"$log" 2>&1 </dev/null; then
      tail -n 20 "$log" >&2
      echo "$program: cannot install python3 (see above)" >&2
      exit 125
    fi
    rm -f "$log"
  fi
  # Compiled modules are kept in the cache folder: the checkout stays clean.
  exec /usr/bin/python3 -X pycache_prefix="${LAB_CACHE:-${HOME:-/tmp}/.cache/pollux/lab}/pycache" \
    -c 'import importlib, sys
sys.path.insert(0, sys.argv.pop(1))
importlib.import_module(sys.argv.pop(1)).main()' "$here" "$module" "$@"
}
