# Runs the command given, and ends it by SIGTERM while its guest writes.
console=$(mktemp)
"$@" >"$console" 2>&1 &
pollux=$!
deadline=$(($(date +%s) + 120))
until grep -q WRITING "$console"; do
  if ! kill -0 $pollux || [ $(date +%s) -gt $deadline ]; then
    cat "$console"; echo "the guest did not come to write"; exit 1
  fi
  sleep 0.2
done
kill -TERM $pollux
wait $pollux
status=$?
cat "$console"
echo "status after SIGTERM: $status"
exit $status
