#!/bin/sh
# Posts one event until Tidings has it. Needs curl 7.84 or newer, and nothing else.
#
#   ./send.sh lead.qualified /agents/voice lead-2041 <data.json
#
#   TIDINGS_URL     where the dispatcher listens, as in http://tidings-dispatcher.tidings-system
#   NAMESPACE       where the event belongs
#   TOKEN_FILE      the ServiceAccount's token, read anew each time: the kubelet renews it
#   GIVE_UP_AFTER   seconds, 300 unless set
#
# In type, source and id, percent-encode spaces, %, " and what is not ASCII: they go into headers.
# Ends with 0 (accepted: durable), 1 (refused: sent again it would be refused again) or 75 (given up for now).
set -eu
type=$1 source=$2 id=$3
url="$TIDINGS_URL/v1/namespaces/$NAMESPACE/events"
answer=$(mktemp) data=$(mktemp)
trap 'rm -f "$answer" "$data"' EXIT
cat >"$data"

# Prints the status (000: no answer) and Retry-After. The token goes in by standard input: arguments can be read by others.
post() {
  printf 'Authorization: Bearer %s\n' "$(cat "${TOKEN_FILE:-/var/run/secrets/tidings/token}")" |
    curl --silent --max-time 30 --output "$answer" --write-out '%{http_code} %header{retry-after}' --header @- \
      --header 'ce-specversion: 1.0' --header "ce-type: $type" --header "ce-source: $source" --header "ce-id: $id" \
      --header 'Content-Type: application/json' --data-binary "@$data" "$url"
}

backoff=1
until=$(($(date +%s) + ${GIVE_UP_AFTER:-300}))
while :; do
  told=$(post) || true # no answer is 000
  status=${told%% *} after=${told#* }
  case $status in
  2??) cat "$answer" && exit 0 ;;
  # In time the same event can be accepted: its id makes that safe. 401: the file has a newer token then.
  000 | 401 | 408 | 429 | 5??) ;;
  *) echo "refused: $status $(cat "$answer")" >&2 && exit 1 ;;
  esac
  case $after in '' | *[!0-9]*) after=$backoff backoff=$((backoff < 30 ? backoff * 2 : 30)) ;; esac
  if [ $(($(date +%s) + after)) -ge "$until" ]; then
    echo "given up: $status" >&2
    exit 75
  fi
  echo "not yet: $status, again in $after s" >&2
  sleep "$after"
done
