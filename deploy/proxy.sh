#!/bin/sh
# Runs HAProxy, which reads certificates only when it starts, and has it load them again when they change:
#   proxy.sh haproxy -W -db -f haproxy.cfg
# Open connections stay, in a process that has limits of its own until they end. Files that do not fit together are
# refused, and the last ones stay in use. DEKAG_HTTPS_DIR and DEKAG_TLS_DIR are those of haproxy.cfg.

checksums() {
  cksum "$DEKAG_HTTPS_DIR/tls.crt" "$DEKAG_HTTPS_DIR/tls.key" "$DEKAG_TLS_DIR/ca.crt" 2>&1
}

# Asks the master process to load its files again at each change from $1 on.
watch_files() {
  last=$1
  while sleep 2; do
    now=$(checksums)
    [ "$now" = "$last" ] || kill -USR2 "$haproxy" || return
    last=$now
  done
}

before=$(checksums)
"$@" &
haproxy=$!
trap 'kill -TERM "$haproxy"' TERM INT HUP
watch_files "$before" &
watcher=$!
wait "$haproxy"
status=$?
while kill -0 "$haproxy" 2>/dev/null; do # a signal has interrupted the wait
  wait "$haproxy"
  status=$?
done
kill "$watcher" 2>/dev/null
exit "$status"
