#!/bin/sh
# A consumer in a dozen lines: takes what waits, hands each body to a command, one a line, and acknowledges what that command
# has taken. Needs curl and jq.
#
#   TIDINGS_URL      where the dispatcher listens, as in http://tidings-dispatcher.tidings-system
#   NAMESPACE        of the subscription
#   SUBSCRIPTION     its name
#   TOKEN_FILE       a file with the ServiceAccount's token, read anew each time: the kubelet renews it
#
#   ./consume.sh sh -c 'cat >> leads.jsonl'
#
# It keeps no cursor: what is not acknowledged is given again, also after it was killed. So a message may come twice; its
# webhook-id (here .id of each message) is the same then.
set -eu
url="$TIDINGS_URL/v1/namespaces/$NAMESPACE/subscriptions/$SUBSCRIPTION"

# The token goes in by a file that only we read: arguments can be read by others.
header=$(mktemp)
trap 'rm -f "$header"' EXIT

ask() {
  printf 'Authorization: Bearer %s\n' "$(cat "$TOKEN_FILE")" >"$header"
  curl --silent --show-error --fail-with-body --max-time 75 --header "@$header" "$@"
}

while :; do
  if ! page=$(ask "$url/pull?wait=30s&limit=100"); then
    echo "$page" >&2 # a problem document, which says what is wrong
    sleep 2
    continue
  fi
  [ "$(printf '%s' "$page" | jq '.messages | length')" -gt 0 ] || continue
  # First all of them, then the command: a page of which one body is no JSON is not taken in part, and not acknowledged.
  if bodies=$(printf '%s' "$page" | jq --compact-output '.messages[].body | fromjson') && printf '%s\n' "$bodies" | "$@"; then
    printf '%s' "$page" | jq '{cursor}' | ask --data-binary @- "$url/ack" >/dev/null || sleep 2
  else
    sleep 2
  fi
done
