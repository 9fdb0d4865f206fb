# Runs the command given, and ends it by SIGTERM while its guest writes.
. "${0%/*}/host.sh"
start "$@"
await_line WRITING
kill -TERM $pollux
finish
